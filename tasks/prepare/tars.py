"""Samples in tar files as WebDataset writes them: members that share a name up to the first dot are one sample.

Nothing is unpacked to where a member's name says, and no member is run or unpickled. Where all members of a sample have
one more dotted word in common (``22.05.png`` and ``22.05.txt``), that word is part of the sample's name.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.errors import UserError
from tasks.prepare.listing import is_hidden

SUFFIXES = (".tar", ".tar.gz", ".tgz")
TEXT_BYTES = 1 << 20
"""Size of the largest member that is read as text (a caption, a class, JSON), and of a header with a long name."""
LISTED_BYTES = 1 << 30
"""Size of the largest tar file that is listed before any work."""

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)


def is_tar(file: Path) -> bool:
    """Whether a file's name is that of a tar file."""
    return file.name.lower().endswith(SUFFIXES)


@dataclass(frozen=True)
class TarMember:
    """Where the content of a member is."""

    path: Path
    offset: int
    size: int

    def content(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass
class TarSample:
    """The members of one sample, by what follows the sample's name in theirs, in lower case: ``jpg``, ``depth.png``."""

    key: str
    members: dict[str, TarMember] = field(default_factory=dict)


class _Header(tarfile.TarInfo):
    """A member's header, of which no part is long enough to fill the memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if not self.isreg() and self.size > TEXT_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return member


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
        for member in tar:
            if member.isdir() or _is_hidden(member.name):
                continue
            matched = _NAME.fullmatch(member.name)
            if not member.isreg() or member.issparse() or not matched:
                linked = member.islnk() or member.issym()
                left.append("without extension" if member.isreg() else "link" if linked else "device")
                continue
            key, extension = matched[1], matched[2].lower()
            sample = groups.setdefault(key, TarSample(key))
            if extension in sample.members:
                raise UserError(f"{where}: has two members {member.name!r}; samples need names of their own")
            sample.members[extension] = TarMember(plain, member.offset_data, member.size)
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise UserError(f"{where} is cut off: its end mark is missing")
    return TarContent([part for sample in groups.values() for part in _regrouped(sample)], left)


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
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    return next((opener for mark, opener in openers.items() if start.startswith(mark)), None)


@contextmanager
def _readable(path: Path, where: str) -> Iterator[tarfile.TarFile]:
    """Open a tar file, errors as those of a user."""
    try:
        with tarfile.open(path, "r:", tarinfo=_Header) as tar:
            yield tar
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{where} is damaged or no tar file: {error}") from None
