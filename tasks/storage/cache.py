"""The DVC cache as a content-addressed store: put a file or folder in once, link it wherever it is needed.

The layout and the hashes are DVC's own (``files/md5/ab/cdef…``; a folder is a ``.dir`` object that lists its
files), so what a node puts here is what ``dvc commit`` finds, ``dvc push`` sends and ``dvc checkout`` restores.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tasks import layout
from tasks.errors import UserError
from tasks.storage import atomic

IGNORED = frozenset({"__pycache__"})
"""Never part of a folder's content; ``.dvcignore`` names the same."""

_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True)
class Entry:
    """Content by hash: md5 (with ``.dir`` for a folder), bytes in all, number of files (None for a file)."""

    md5: str
    size: int
    nfiles: int | None = None

    @property
    def is_folder(self) -> bool:
        return self.nfiles is not None

    def as_dict(self) -> dict[str, str | int]:
        """The keys of a ``.dvc`` file or of ``dvc.lock``; ``nfiles`` only for a folder."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(folder: Path) -> list[str]:
    """Relative POSIX paths of the files below a folder, sorted; without `IGNORED` folders.

    Raises:
        UserError: a symbolic link, which could lead outside the folder when it is restored.
    """
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in IGNORED]
        for name in (*names, *folders):
            path = Path(parent, name)
            if path.is_symlink():
                raise UserError(f"{path}: is a symbolic link; put the file itself there")
            if name in names:
                files.append(path.relative_to(folder).as_posix())
    return sorted(files)


def _folder_object(listing: dict[str, str]) -> bytes:
    """DVC's ``.dir`` object, byte for byte, of relative path → md5."""
    rows = [{"md5": md5, "relpath": path} for path, md5 in sorted(listing.items())]
    return json.dumps(rows, sort_keys=True).encode()


def listing(text: str, md5: str) -> dict[str, str]:
    """Relative path → md5 of the files of a folder, from its ``.dir`` object.

    Raises:
        UserError: it is no list of files, a path leads outside the folder, or no file can have it.
    """
    try:
        files = {row["relpath"]: row["md5"] for row in json.loads(text)}
        if not all(isinstance(part, str) for row in files.items() for part in row):
            raise TypeError("a path or a hash is no text")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"stored folder {md5} is no list of files ({type(error).__name__}: {error})") from None
    for name in files:
        if ".." in Path(name).parts or not layout.is_inside(name):
            raise UserError(f"stored folder {md5} holds the path {name!r}, which leads outside it, or into a .git")
        if "\0" in name or any(len(_bytes(part)) > _LONGEST for part in name.split("/")):
            raise UserError(f"stored folder {md5} holds the path {name!r}, which no file can have")
    return files


_LONGEST = 255
"""Bytes of a file's name, on the usual file systems."""


def _bytes(name: str) -> bytes:
    """A name as Linux has it; one that has no bytes (a lone surrogate, as JSON allows) as too many."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return bytes(_LONGEST + 1)


def hash_of(path: Path) -> Entry:
    """The entry that a file or folder would have, without storing anything."""
    if path.is_dir():
        names = files_in(path)
        listing = {name: md5_of(path / name) for name in names}
        size = sum((path / name).stat().st_size for name in names)
        return Entry(hashlib.md5(_folder_object(listing)).hexdigest() + ".dir", size, len(names))
    return Entry(md5_of(path), path.stat().st_size)


class Cache:
    """A DVC cache folder (``.dvc/cache``)."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._objects = folder / "files" / "md5"

    def path(self, md5: str) -> Path:
        """Where an object lies, or would.

        Raises:
            UserError: this is no md5, and could lead anywhere.
        """
        if not _MD5.fullmatch(md5):
            raise UserError(f"{md5!r} is no content hash; the state that names it is damaged")
        return self._objects / md5[:2] / md5[2:]

    def put(self, path: Path) -> Entry:
        """Store a file or a folder and leave read-only links to the stored content in its place.

        The source is moved, not copied, where the file system allows; writing to it afterwards must go
        through a temporary file and a rename.
        """
        if not path.is_dir():
            return self._put_file(path)
        stored = {name: self._put_file(path / name) for name in files_in(path)}
        return self._put_folder({name: e.md5 for name, e in stored.items()}, sum(e.size for e in stored.values()))

    def _put_folder(self, listing: dict[str, str], size: int) -> Entry:
        content = _folder_object(listing)
        md5 = hashlib.md5(content).hexdigest() + ".dir"
        self._put_bytes(md5, content)
        return Entry(md5, size, len(listing))

    def _put_file(self, path: Path) -> Entry:
        entry = Entry(md5_of(path), path.stat().st_size)
        stored = self.path(entry.md5)
        if not self._matches(entry.md5):  # absent, torn by a crash, or damaged since
            with path.open("rb") as file:
                os.fsync(file.fileno())
            stored.parent.mkdir(parents=True, exist_ok=True)
            atomic.link(path, stored)
            stored.chmod(0o444)
        else:
            atomic.link(stored, path)
        return entry

    def _put_bytes(self, md5: str, content: bytes) -> None:
        stored = self.path(md5)
        if self._matches(md5):
            return
        stored.parent.mkdir(parents=True, exist_ok=True)
        with atomic.made(stored) as part:
            part.write_bytes(content)
            atomic.sync(part)
            part.chmod(0o444)

    def members(self, entry: Entry) -> dict[str, str]:
        """Relative path → md5 of a stored folder; see `listing`.

        Raises:
            UserError: the stored listing is damaged, or holds a path that leads outside the folder.
        """
        content = self.path(entry.md5).read_bytes()
        if hashlib.md5(content).hexdigest() != entry.md5.removesuffix(".dir"):
            raise UserError(
                f"{self.path(entry.md5)} is damaged: its bytes are not those of its name; delete it, so that it is "
                "fetched again"
            )
        return listing(content.decode(), entry.md5)

    def part(self, entry: Entry, relpath: str) -> Entry | None:
        """The entry of a file or subfolder within a stored folder, or None; a subfolder is stored as its own."""
        members = self.members(entry)
        if relpath in members:
            md5 = members[relpath]
            return Entry(md5, self.path(md5).stat().st_size)
        prefix = relpath + "/"
        below = {name.removeprefix(prefix): md5 for name, md5 in members.items() if name.startswith(prefix)}
        if not below:
            return None
        return self.compose({name: Entry(md5, self.path(md5).stat().st_size) for name, md5 in below.items()})

    def compose(self, entries: dict[str, Entry]) -> Entry:
        """Store a folder made of stored files and folders: relative path → entry."""
        return self._put_folder(self.files(entries), sum(entry.size for entry in entries.values()))

    def files(self, entries: Mapping[str, Entry]) -> dict[str, str]:
        """The files below entries placed at paths: path of each file → md5."""
        listing: dict[str, str] = {}
        for path, entry in entries.items():
            if entry.is_folder:
                listing |= {f"{path}/{name}": md5 for name, md5 in self.members(entry).items()}
            else:
                listing[path] = entry.md5
        return listing

    def intact(self, entry: Entry) -> bool:
        """Whether every byte of it is in the cache: all files are hashed again (about 0.4 GB a second)."""
        return all(self._matches(md5) for md5 in self._objects_of(entry))

    def _matches(self, md5: str) -> bool:
        stored = self.path(md5)
        return stored.exists() and md5_of(stored) == md5.removesuffix(".dir")

    def _objects_of(self, entry: Entry) -> Iterator[str]:
        yield entry.md5
        if entry.is_folder and self._matches(entry.md5):
            yield from set(self.members(entry).values())

    def objects(self, entries: Iterable[Entry]) -> dict[str, int]:
        """The files that entries are made of, each once: md5 → bytes."""
        sizes = {}
        for entry in entries:
            for md5 in self.members(entry).values() if entry.is_folder else [entry.md5]:
                sizes[md5] = self.path(md5).stat().st_size
        return sizes

    def md5s(self, entries: Iterable[Entry]) -> set[str]:
        """The objects that entries are made of, the listings of folders among them."""
        hashes = set()
        for entry in entries:
            hashes |= {entry.md5, *(self.members(entry).values() if entry.is_folder else ())}
        return hashes

    def missing(self, entry: Entry) -> list[str]:
        """The objects of an entry that are not in the cache, by md5; files in the cache are not read, but listings are:
        a damaged one counts as missing."""
        if not (self._matches(entry.md5) if entry.is_folder else self.path(entry.md5).exists()):
            return [entry.md5]
        objects = set(self.members(entry).values()) if entry.is_folder else set()
        return sorted(md5 for md5 in objects if not self.path(md5).exists())

    def drop_damaged(self, entry: Entry, only: Container[str] | None = None) -> list[str]:
        """Remove objects of an entry (of those in ``only``) whose bytes do not match, so that they are made or
        fetched again; returns them."""
        objects = [md5 for md5 in self._objects_of(entry) if only is None or md5 in only]
        damaged = [md5 for md5 in objects if self._condition(md5) is False]
        for md5 in damaged:
            self.path(md5).unlink()
        return damaged

    def condition(self, entry: Entry) -> dict[str, bool | None]:
        """Every object of an entry → whether it has the bytes that its name promises; None where the cache lacks it.

        All are hashed. What a folder lists is unknown where its listing is damaged or missing.
        """
        return {md5: self._condition(md5) for md5 in self._objects_of(entry)}

    def _condition(self, md5: str) -> bool | None:
        return self._matches(md5) if self.path(md5).exists() else None

    def drop_unfinished(self) -> None:
        """Remove what processes that are dead by now were about to store."""
        for path in self._objects.glob("*/.part-*"):
            if not psutil.pid_exists(int(path.name.split("-")[1])):
                path.unlink(missing_ok=True)  # of versions before `atomic`
        for folder in self._objects.glob("*/"):
            atomic.remove_leftovers(folder)
        # With these DVC tries, for some milliseconds, which links work; they name no process.
        for path in self._objects.glob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > 1:
                    path.unlink()

    def link(self, entry: Entry, path: Path) -> None:
        """Place an entry at a path that does not exist yet, by hardlinks where possible, else by copies."""
        if not entry.is_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.link(self.path(entry.md5), path)
            return
        path.mkdir(parents=True, exist_ok=True)
        for name, md5 in self.members(entry).items():
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic.link(self.path(md5), target)
