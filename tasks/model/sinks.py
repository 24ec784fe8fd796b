"""What a merged model is written to: one safetensors file, shards under an index, or a dictionary; all or nothing."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.model.dtypes import BITS, stored_as
from tasks.model.sources import TensorEntry
from tasks.storage import atomic

INDEX = ".index.json"
"""How the name of an index ends."""


SHARD_BYTES = 5_000_000_000
"""Bytes of a shard, unless told otherwise."""


class Sink(Protocol):
    """Takes pieces of tensors in any order, from any thread."""

    def write(self, name: str, start: int, data: NDArray[Any]) -> None:
        """Put raw entries into a tensor, from byte ``start`` on."""

    def finish(self) -> None:
        """All pieces are there: make the model visible under its name."""

    def abandon(self) -> None:
        """Leave nothing behind."""


def _nothing(_names: Collection[str]) -> list[Path]:
    """No other file goes."""
    return []


class FileSink:
    """A safetensors file at ``path``; where it ends in ``.index.json``, shards of ``shard_bytes`` beside it.

    It is written to private files (`tasks.storage.atomic`), flushed, then renamed. The bytes depend on names, shapes,
    dtypes and values alone. ``outdated`` is asked, before the renames, which other files in the folder go when those
    of these names come; it may refuse. ``metadata`` goes into the header.
    """

    def __init__(
        self,
        path: Path,
        entries: Mapping[str, TensorEntry],
        shard_bytes: int = SHARD_BYTES,
        outdated: Callable[[Collection[str]], list[Path]] = _nothing,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._path, self._outdated, self._metadata = path, outdated, dict(metadata or {})
        self._replacements: list[atomic.Replacement] = []
        self._places: dict[str, tuple[int, int]] = {}
        self._descriptors: list[int] = []
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file in it, such as {path / 'merged.safetensors'}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files = _files(path, entries, shard_bytes)
            for file, names in files.items():
                self._add(path.with_name(file), names, entries)
            if not path.name.endswith(INDEX):
                return
            weight_map = {name: file for file, names in files.items() for name in names}
            total = sum(e.bytes for e in entries.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            # Last, so that an index never names shards that are not there.
            self._replacement(path).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            self.abandon()
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None

    @staticmethod
    def names(path: Path, entries: Mapping[str, TensorEntry], shard_bytes: int = SHARD_BYTES) -> list[str]:
        """The names of all files that a sink with these arguments writes."""
        files = list(_files(path, entries, shard_bytes))
        return [*files, path.name] if path.name.endswith(INDEX) else files

    def _add(self, path: Path, names: list[str], entries: Mapping[str, TensorEntry]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **self._metadata}}
        offset = 0
        for name in names:
            entry = entries[name]
            end = offset + entry.bytes
            header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        descriptor = os.open(self._replacement(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._descriptors.append(descriptor)
        data = 8 + len(text)
        if offset:
            os.posix_fallocate(descriptor, 0, data + offset)  # a full disk shows now, not after an hour
        os.pwrite(descriptor, len(text).to_bytes(8, "little") + text, 0)
        for name in names:
            self._places[name] = (descriptor, data + header[name]["data_offsets"][0])

    def _replacement(self, path: Path) -> Path:
        self._replacements.append(atomic.Replacement(path))
        return self._replacements[-1].path

    def write(self, name: str, start: int, data: NDArray[Any]) -> None:
        descriptor, offset = self._places[name]
        view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        offset += start
        while len(view):
            count = os.pwrite(descriptor, view, offset)
            view, offset = view[count:], offset + count

    def read_back(self, name: str, start: int, buffer: NDArray[Any]) -> None:
        """Fill ``buffer`` with what was written, before `finish`."""
        descriptor, offset = self._places[name]
        view = buffer.reshape(-1).view(np.uint8).data
        offset += start
        while len(view):
            count = os.preadv(descriptor, [view], offset)
            view, offset = view[count:], offset + count

    def finish(self) -> None:
        for descriptor in self._descriptors:
            os.fsync(descriptor)
            os.close(descriptor)
        self._descriptors = []
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if len(self._replacements) > 1 or self._outdated is not _nothing:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(folder, fcntl.LOCK_EX)  # the shards of two merges never mix
            outdated = self._outdated([replacement.target.name for replacement in self._replacements])
            for replacement in self._replacements:
                replacement.commit()
            for path in outdated:
                path.unlink(missing_ok=True)
        finally:
            os.close(folder)

    def abandon(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        for replacement in self._replacements:
            replacement.close()


def _files(path: Path, entries: Mapping[str, TensorEntry], shard_bytes: int) -> dict[str, list[str]]:
    """File name → the tensors in it, in order."""
    ordered = sorted(entries, key=lambda n: (-BITS[entries[n].dtype], n))  # widest first keeps all aligned
    if not path.name.endswith(INDEX):
        return {path.name: ordered}
    shards = _cut(ordered, entries, shard_bytes)
    stem = path.name.removesuffix(INDEX).removesuffix(".safetensors")
    return {f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards)}


def _cut(names: list[str], entries: Mapping[str, TensorEntry], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name in names:
        size = entries[name].bytes
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


class DictSink:
    """Arrays in memory, `arrays`; bfloat16 as its 16 bits."""

    def __init__(self, entries: Mapping[str, TensorEntry]) -> None:
        self._entries = entries
        self._bytes = {name: np.empty(e.bytes, np.uint8) for name, e in entries.items()}
        self.arrays: dict[str, NDArray[Any]] = {}

    def write(self, name: str, start: int, data: NDArray[Any]) -> None:
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self._bytes[name][start : start + flat.size] = flat

    def finish(self) -> None:
        for name, entry in self._entries.items():
            array = self._bytes[name].view(stored_as(entry.dtype))
            # Dtypes of less than a byte stay the bytes that they are packed in.
            self.arrays[name] = array.reshape(entry.shape) if array.size == entry.size else array

    def abandon(self) -> None:
        self._bytes = {}
