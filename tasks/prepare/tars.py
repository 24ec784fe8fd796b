"""Samples in tar files as WebDataset writes them: members that share a name up to the first dot are one sample.

Nothing is unpacked to where a member's name says, and no member is run or unpickled. Where all members of a sample have
one more dotted word in common (``22.05.png`` and ``22.05.txt``), that word is part of the sample's name.
"""

from __future__ import annotations

import io
import itertools
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tasks.errors import UserError
from tasks.prepare import files
from tasks.prepare.listing import is_hidden

SUFFIXES = (".tar", ".tar.gz", ".tgz")
TEXT_BYTES = 1 << 20
"""Size of the largest member that is read as text (a caption, a class, JSON), and of a header with a long name."""
LISTED_BYTES = 1 << 30
"""Size of the largest tar file that is listed before any work."""

MEMBERS = 2_000_000
"""Of a tar file, at most: a list of more takes over a gigabyte of memory, and a compressed file of a few megabytes."""

_AT_ONCE = 1 << 20
"""Bytes that are read at a time of a file of which the start is needed."""
_MARKS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")
"""The first bytes of compressed files: gzip, bzip2, xz."""

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)


def is_tar(file: Path) -> bool:
    """Whether a file's name is that of a tar file."""
    return file.name.lower().endswith(SUFFIXES)


@dataclass(frozen=True, slots=True)
class TarMember:
    """Where the content of a member is."""

    path: Path
    offset: int
    size: int

    def content(self) -> bytes:
        """Its bytes, which are those of a text or an image.

        Raises:
            OSError: as `tasks.prepare.files.image`.
        """
        return files.image(self.path, self.offset, self.size)


@dataclass
class TarSample:
    """The members of one sample, by what follows the sample's name in theirs, in lower case: ``jpg``, ``depth.png``."""

    key: str
    members: dict[str, TarMember] = field(default_factory=dict)


class _Header(tarfile.TarInfo):
    """A member's header, of which no part is long enough to fill the memory, and which leads forwards."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0:
            raise tarfile.ReadError(f"a member of {self.size} bytes")
        if not self.isreg() and self.size > TEXT_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return member

    def _apply_pax_info(self, *given: Any) -> None:
        super()._apply_pax_info(*given)  # type: ignore[misc]
        if self.size < 0:  # tarfile would go back, and read the same members for ever (CVE-2025-8194)
            raise tarfile.ReadError(f"a member of {self.size} bytes")

    def _proc_sparse(self, *_: Any) -> tarfile.TarInfo:
        raise tarfile.ReadError("a sparse file, whose map may fill the memory; write it without --sparse")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_sparse


@dataclass(frozen=True)
class TarContent:
    """What a tar file holds."""

    samples: list[TarSample]
    left_out: list[str]
    """What members are that belong to no sample: ``without extension``, or ``link`` or ``device``."""


def at_most(path: Path, what: str) -> int | None:
    """The number of samples of a tar file; None where it is compressed, or so large that listing it takes long.

    Raises:
        UserError: as `read`.
    """
    if path.stat().st_size > LISTED_BYTES or _opener(path, what):
        return None
    return len(read(path, path.parent, what, LISTED_BYTES).samples)


def read(path: Path, scratch: Path, what: str, limit: int) -> TarContent:
    """List the samples of a tar file, in the order of their first members; what is compressed is unpacked to scratch.

    ``limit`` is the most bytes that a compressed file may unpack to.

    Raises:
        UserError: the file is damaged, cut off or no tar file, unpacks to more than ``limit``, or has two members of
            one name; names ``what``.
    """
    where = f"{what}: {path.name}"
    plain = _unpacked(path, scratch, where, limit)
    groups: dict[str, TarSample] = {}
    left: list[str] = []
    with _readable(plain, where) as tar:
        for member in _each(tar, where):
            if member.isdir() or _is_hidden(member.name):
                continue
            matched = _NAME.fullmatch(member.name)
            if not member.isreg() or not matched:
                linked = member.islnk() or member.issym()
                left.append("without extension" if member.isreg() else "link" if linked else "device")
                continue
            key, extension = matched[1], matched[2].lower()
            sample = groups.setdefault(key, TarSample(key))
            if extension in sample.members:
                raise UserError(f"{where}: has two members {member.name!r}; samples need names of their own")
            sample.members[extension] = TarMember(plain, member.offset_data, member.size)
        _require_end(tar, where)
    return TarContent([part for sample in groups.values() for part in _regrouped(sample)], left)


def members(path: Path, what: str) -> dict[str, TarMember]:
    """The regular files of a tar file that is not compressed, by their names, in its order.

    Raises:
        UserError: it is damaged, cut off or no tar file; names ``what``.
    """
    where = f"{what}: {path.name}"
    with _readable(path, where) as tar:
        archived = {one.name: TarMember(path, one.offset_data, one.size) for one in _each(tar, where) if one.isreg()}
        _require_end(tar, where)
    return archived


def write(path: Path, members: Mapping[str, TarMember]) -> None:
    """A tar file of members under other names; equal ones give equal bytes."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, member in members.items():
            header = tarfile.TarInfo(name)
            header.size = member.size
            with member.path.open("rb") as file:
                file.seek(member.offset)
                tar.addfile(header, file)


def _each(tar: tarfile.TarFile, where: str) -> Iterator[tarfile.TarInfo]:
    """The members, of which nothing stays in memory that the caller does not keep.

    Raises:
        UserError: there are more than `MEMBERS`.
    """
    for number in itertools.count():
        member = tar.next()
        if member is None:
            return
        if number == MEMBERS:
            raise UserError(f"{where}: has more than {MEMBERS} members; write them to several tar files")
        tar.members.clear()  # type: ignore[attr-defined,unused-ignore]
        yield member


def _require_end(tar: tarfile.TarFile, where: str) -> None:
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise UserError(f"{where} is cut off: its end mark is missing")


def start(source: IO[bytes], samples: int, target: Path, what: str) -> int | None:
    """Write the start of a tar file, up to the end of its first ``samples``, as a tar file; returns their number.

    ``source`` is read to there and no further. None, and no file, where the start does not tell which samples are
    complete or where there are not more of them: the file is compressed, or members of a sample lie apart.

    Raises:
        UserError: it is damaged, cut off or no tar file; names ``what``.
    """
    with target.open("w+b") as kept, _told(what):
        reader = _Growing(source, kept)
        end = None if _is_compressed(reader.read(6)) else _end_of(reader, samples, what)
        if end is not None:
            kept.truncate(end[1])
            kept.seek(end[1])
            kept.write(bytes(2 * tarfile.BLOCKSIZE))  # the end mark
            return end[0]
    target.unlink()
    return None


def _end_of(reader: _Growing, samples: int, what: str) -> tuple[int, int] | None:
    """How many samples lie before the first byte that ``samples`` do not need, and where that is; None as `start`."""
    reader.seek(0)
    done, alone, known = 0, True, set[str]()
    current: TarSample | None = None
    with tarfile.open(fileobj=reader, mode="r:", tarinfo=_Header) as tar:
        for member in _each(tar, what):
            matched = _NAME.fullmatch(member.name)
            if not member.isreg() or _is_hidden(member.name) or not matched:
                continue
            if current is None or matched[1] != current.key:
                if current is not None:
                    alone = alone and len(current.members) == 1
                    done += len(list(_regrouped(current)))
                if matched[1] in known or (done >= samples and alone):
                    return None
                if done >= samples:
                    return done, member.offset
                current = TarSample(matched[1])
                known.add(matched[1])
            current.members[matched[2].lower()] = TarMember(Path(), member.offset_data, member.size)
    return None


class _Growing(io.RawIOBase):
    """What has been read of a source, in a file; reading further reads the source."""

    def __init__(self, source: IO[bytes], kept: IO[bytes]):
        self._source, self._kept, self._at, self._there = source, kept, 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET
        self._at = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        assert size >= 0
        self._kept.seek(self._there)
        while self._there < self._at + size and (chunk := self._source.read(_AT_ONCE)):
            self._kept.write(chunk)
            self._there += len(chunk)
        self._kept.seek(self._at)
        data = self._kept.read(size)
        self._at += len(data)
        return data


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(is_hidden(part) for part in parts if part != "..") or (parts or ("",))[-1].startswith("__")


def _regrouped(sample: TarSample) -> Iterator[TarSample]:
    """The sample, or where none of its members has a bare extension, those that share all up to the last dot."""
    stems = {extension.rpartition(".")[0] for extension in sample.members}
    if "" in stems or len(sample.members) == 1:
        yield sample
        return
    for stem in dict.fromkeys(extension.rpartition(".")[0] for extension in sample.members):
        mine = {
            extension.rpartition(".")[2]: member
            for extension, member in sample.members.items()
            if extension.rpartition(".")[0] == stem
        }
        yield TarSample(f"{sample.key}.{stem}", mine)


def _unpacked(path: Path, scratch: Path, where: str, limit: int) -> Path:
    """The tar file itself, or, where it is compressed, its content in a file of its own."""
    opener = _opener(path, where)
    if opener is None:
        return path
    target = scratch / f"{path.name}-{abs(hash(path))}.tar"
    try:
        with opener(path, "rb") as source, target.open("wb") as sink:
            size = 0
            while chunk := source.read(1 << 20):
                size += len(chunk)
                if size > limit:
                    raise UserError(f"{where} unpacks to more than {limit} bytes (limits.drop_bytes)")
                sink.write(chunk)
    except (OSError, EOFError, zlib.error, LZMAError) as error:
        raise UserError(f"{where} is damaged or no tar file: {error}") from None
    return target


def _opener(path: Path, where: str) -> Any:
    """What opens a compressed file; None for one that is not compressed."""
    import bz2
    import gzip
    import lzma

    try:
        with path.open("rb") as file:
            start = file.read(6)
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror or error}") from None
    openers: tuple[Any, ...] = (gzip.open, bz2.open, lzma.open)
    return next((opener for mark, opener in zip(_MARKS, openers, strict=True) if start.startswith(mark)), None)


def _is_compressed(start: bytes) -> bool:
    return start.startswith(_MARKS)


@contextmanager
def _readable(path: Path, where: str) -> Iterator[tarfile.TarFile]:
    """Open a tar file, errors as those of a user."""
    with _told(where), tarfile.open(path, "r:", tarinfo=_Header) as tar:
        yield tar


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Errors of reading a tar file as those of a user."""
    try:
        yield
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{where} is damaged or no tar file: {error}") from None
