"""Where a merged model goes: one safetensors file, shards under an index, or a dictionary; all of it or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.merge.sources import WIDTH, Entry
from tasks.storage import atomic

_INDEX = ".index.json"


class Sink(Protocol):
    """Takes pieces of tensors in any order, from any thread."""

    def write(self, name: str, start: int, data: NDArray[Any]) -> None:
        """Put raw entries into a tensor, from byte ``start`` on."""

    def finish(self) -> None:
        """All pieces are there: make the model visible under its name."""

    def abandon(self) -> None:
        """Leave nothing behind."""


class FileSink:
    """A safetensors file at ``path``; where it ends in ``.index.json``, shards of ``shard_bytes`` beside it.

    It is written under a temporary name in the same folder, flushed, then renamed. The bytes depend on names,
    shapes, dtypes and values alone.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry], shard_bytes: int = 5_000_000_000) -> None:
        self._replacements: list[atomic.Replacement] = []
        self._places: dict[str, tuple[int, int]] = {}
        self._descriptors: list[int] = []
        ordered = sorted(entries, key=lambda n: (-WIDTH[entries[n].dtype], n))  # widest first keeps all aligned
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file in it, such as {path / 'merged.safetensors'}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.name.endswith(_INDEX):
                self._add(path, ordered, entries)
                return
            shards = _cut(ordered, entries, shard_bytes)
            stem = path.name.removesuffix(_INDEX).removesuffix(".safetensors")
            names = [f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
            for shard_name, shard in zip(names, shards, strict=True):
                self._add(path.with_name(shard_name), shard, entries)
            weight_map = {name: names[i] for i, shard in enumerate(shards) for name in shard}
            total = sum(e.size * WIDTH[e.dtype] for e in entries.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            # Last, so that an index never names shards that are not there.
            self._replacement(path).write_text(json.dumps(index, indent=2) + "\n")
        except OSError as error:
            self.abandon()
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None

    def _add(self, path: Path, names: list[str], entries: Mapping[str, Entry]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            entry = entries[name]
            end = offset + entry.size * WIDTH[entry.dtype]
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
        for replacement in self._replacements:
            replacement.commit()

    def abandon(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []
        for replacement in self._replacements:
            replacement.close()


def _cut(names: list[str], entries: Mapping[str, Entry], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name in names:
        size = entries[name].size * WIDTH[entries[name].dtype]
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


class DictSink:
    """Arrays in memory, `arrays`; bfloat16 as its 16 bits."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries
        self._bytes = {name: np.empty(e.size * WIDTH[e.dtype], np.uint8) for name, e in entries.items()}
        self.arrays: dict[str, NDArray[Any]] = {}

    def write(self, name: str, start: int, data: NDArray[Any]) -> None:
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self._bytes[name][start : start + flat.size] = flat

    def finish(self) -> None:
        for name, entry in self._entries.items():
            self.arrays[name] = self._bytes[name].view(_ARRAYS[entry.dtype]).reshape(entry.shape)

    def abandon(self) -> None:
        self._bytes = {}


_ARRAYS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?", "F8_E4M3": "u1", "F8_E5M2": "u1",
}  # fmt: skip
