"""Where drops lie: a local folder, or an S3 prefix. A drop is a folder in it, finished once its marker is there."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from tasks.arrive import drops, s3
from tasks.errors import UserError

READY = "READY"
MANIFEST = "arrival.yaml"
MARKERS = (READY, MANIFEST)
"""Whichever of them is written, is written last."""
MANIFEST_BYTES = 64 << 10
"""Size of the largest manifest."""


class Inbox(ABC):
    """An inbox, looked at once."""

    where: str
    """Its address, for messages and notes."""

    @abstractmethod
    def drops(self) -> list[str]:
        """The names of all folders there."""

    @abstractmethod
    def signature(self, name: str) -> str | None:
        """What a look from outside tells of a drop: another one after every change; None where it is gone."""

    @abstractmethod
    def still(self, name: str, signature: str) -> bool:
        """Whether a new look at a drop gives the same signature."""

    @abstractmethod
    def finished(self, name: str) -> bool:
        """Whether a drop has its marker."""

    @abstractmethod
    def content(self, name: str) -> str:
        """A hash of the content of a drop, without its `READY`: the same for the same drop whatever its times say."""

    @abstractmethod
    def manifest(self, name: str) -> str | None:
        """The text of a drop's manifest, if it has one.

        Raises:
            UserError: it is no text.
        """

    @abstractmethod
    def address(self, name: str) -> str:
        """What a drop is to an arrival: a folder, or an ``s3://`` address."""

    @abstractmethod
    def names(self, name: str) -> list[str]:
        """The paths of a drop's files, relative to it."""


def place(where: str, project: Path) -> Inbox:
    """The inbox at an address: ``s3://BUCKET/PREFIX``, or a folder (relative to the project).

    Raises:
        UserError: there is no such folder.
        UnreachableError: S3 does not answer.
    """
    return _BucketInbox(where) if where.startswith(s3.SCHEME) else _FolderInbox(where, project / where)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class _FolderInbox(Inbox):
    def __init__(self, where: str, folder: Path):
        self.where = os.path.realpath(folder)  # which no circle of links breaks
        self.folder = Path(self.where)
        if not folder.is_dir():
            raise UserError(f"{where}: no such folder; an inbox is a folder with a folder for each drop in it")

    def drops(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith("."))

    def signature(self, name: str) -> str | None:
        facts = {}
        try:
            for file in self.names(name):
                about = (self.folder / name / file).lstat()
                facts[file] = [about.st_size, about.st_mtime_ns]
            if (self.folder / name).is_symlink():
                facts[""] = [0, 0]
        except FileNotFoundError:
            return None
        return _hash(facts) if facts else None

    def still(self, name: str, signature: str) -> bool:
        return self.signature(name) == signature

    def finished(self, name: str) -> bool:
        return any((self.folder / name / marker).is_file() for marker in MARKERS)

    def content(self, name: str) -> str:
        return _hash({file: self._hash_of(name, file) for file in self.names(name) if file != READY})

    def _hash_of(self, name: str, file: str) -> str:
        """The hash of a file's content; of what is no file of the drop, why it is none."""
        try:
            with drops.opened(self.folder / name, file) as content:
                return hashlib.file_digest(content, "md5").hexdigest()  # type: ignore[arg-type]
        except UserError as error:
            return str(error)

    def manifest(self, name: str) -> str | None:
        path = self.folder / name / MANIFEST
        if not path.is_symlink() and not path.exists():
            return None
        with drops.opened(self.folder / name, MANIFEST) as file:
            text = file.read(MANIFEST_BYTES + 1)
        if len(text) > MANIFEST_BYTES:
            raise UserError(f"{path}: has more than {MANIFEST_BYTES} bytes")
        try:
            return text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"{path}: not a text file") from None

    def address(self, name: str) -> str:
        return str(self.folder / name)

    def names(self, name: str) -> list[str]:
        return drops.entries(self.folder / name)


class _BucketInbox(Inbox):
    def __init__(self, where: str):
        self.where = where.rstrip("/")
        self._objects: dict[str, dict[str, s3.Stored]] = {}
        for key, about in s3.objects(self.where + "/").items():
            name, _, file = key.partition("/")
            if file:
                self._objects.setdefault(name, {})[file] = about

    def drops(self) -> list[str]:
        return sorted(self._objects)

    def signature(self, name: str) -> str | None:
        return self.content(name) if self._objects[name] else None

    def still(self, name: str, signature: str) -> bool:
        self._objects[name] = s3.objects(self.address(name) + "/")
        return self.signature(name) == signature

    def finished(self, name: str) -> bool:
        return any(marker in self._objects[name] for marker in MARKERS)

    def content(self, name: str) -> str:
        objects = self._objects[name].items()
        return _hash({file: [about.size, about.tag] for file, about in objects if file != READY})

    def manifest(self, name: str) -> str | None:
        if MANIFEST not in self._objects[name]:
            return None
        where = f"{self.address(name)}/{MANIFEST}"
        if self._objects[name][MANIFEST].size > MANIFEST_BYTES:
            raise UserError(f"{where}: has more than {MANIFEST_BYTES} bytes")
        return s3.text(where)

    def address(self, name: str) -> str:
        return f"{self.where}/{name}"

    def names(self, name: str) -> list[str]:
        return sorted(self._objects[name])
