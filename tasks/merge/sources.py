"""Models to read: safetensors files (one, or shards under an index) or dictionaries of arrays, piece by piece."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.merge.device import HOST, Device

WIDTH = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes an entry, by safetensors dtype name."""

FLOATS = ("F32", "F16", "BF16", "F64")
"""What can be merged; arithmetic is in float32."""

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_SINGLE = "model.safetensors"
_LARGEST_HEADER = 100_000_000
_TORCH = (b"PK\x03\x04", b"\x80\x02")
"""How torch's files begin: archives, and the pickles of older versions."""
_HASHED_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a model, as its header describes it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Source(Protocol):
    """A model to read. Methods may be called from several threads."""

    label: str
    """Its path, or what else names it in messages."""
    entries: Mapping[str, Entry]

    def read_into(self, name: str, start: int, buffer: NDArray[Any]) -> None:
        """Fill ``buffer`` with the raw bytes of a tensor, from byte ``start`` on."""


def read(source: Source, name: str, start: int, stop: int, device: Device = HOST) -> NDArray[np.float32]:
    """Entries [start, stop) of a flattened tensor as float32, new memory on ``device`` (within `Device.active`).

    Raises:
        UserError: one of them is NaN or infinite.
    """
    dtype = source.entries[name].dtype
    stored = np.empty(stop - start, _NUMPY[dtype])
    source.read_into(name, start * stored.itemsize, stored)
    raw = device.put(stored)  # as stored: half precision crosses in half the time
    if dtype == "F32":
        x = raw
    elif dtype == "BF16":
        x = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is refused below
            x = raw.astype(np.float32)
    if not np.isfinite(x).all():
        raise UserError(
            f"{source.label}: tensor {name!r} holds NaN or infinity; a model that diverged cannot be merged"
        )
    return x


def encode(x: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Float32 to another dtype, rounded to nearest even; bfloat16 as its 16 bits."""
    if dtype == "BF16":
        bits = x.view(np.uint32)
        return ((bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)).astype("<u2")
    with np.errstate(over="ignore"):
        return x.astype(_NUMPY[dtype], copy=False)


def fits(encoded: NDArray[Any], dtype: str) -> bool:
    """Whether every entry is finite."""
    if dtype == "BF16":
        return bool(((encoded & np.uint16(0x7F80)) != 0x7F80).all())
    return bool(np.isfinite(encoded).all())


def content_hash(source: Source, name: str) -> bytes:
    """SHA-256 of one tensor: dtype, shape and bytes."""
    entry = source.entries[name]
    digest = hashlib.sha256(f"{entry.dtype}{list(entry.shape)}".encode())
    total = entry.size * WIDTH[entry.dtype]
    for start in range(0, total, _HASHED_AT_ONCE):
        buffer = np.empty(min(_HASHED_AT_ONCE, total - start), np.uint8)
        source.read_into(name, start, buffer)
        digest.update(buffer.data)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class _Place:
    descriptor: int
    offset: int
    path: Path


class FileSource:
    """A safetensors file, or several under an index JSON (``model.safetensors.index.json``, or its folder).

    Reads with pread rather than a memory map: mapped pages would count as resident, and gigabytes of them do.

    Raises:
        UserError: a file is missing, truncated or not safetensors, or the index names what its shards lack.
    """

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        self._entries: dict[str, Entry] = {}
        self.entries: Mapping[str, Entry] = self._entries
        self._places: dict[str, _Place] = {}
        self._descriptors: list[int] = []
        try:
            for shard in _shards(path):
                self._open(shard)
            for name, shard_name in (_index_of(path) or {}).items():
                if name not in self.entries:
                    raise UserError(f"{path}: the index puts {name!r} into {shard_name}, which lacks it")
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise UserError(f"{path}: no such checkpoint") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        self._descriptors.append(descriptor)
        for name, (entry, offset) in _header(path, descriptor).items():
            if name in self.entries:
                raise UserError(f"{path}: tensor {name!r} is in two shards")
            self._entries[name] = entry
            self._places[name] = _Place(descriptor, offset, path)

    def read_into(self, name: str, start: int, buffer: NDArray[Any]) -> None:
        place = self._places[name]
        view = buffer.reshape(-1).view(np.uint8).data
        offset = place.offset + start
        while len(view):
            try:
                count = os.preadv(place.descriptor, [view], offset)
            except OSError as error:
                raise UserError(f"{place.path}: cannot be read ({error.strerror})") from None
            if count == 0:
                raise UserError(f"{place.path}: became shorter while it was read")
            view, offset = view[count:], offset + count

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _index_of(path: Path) -> dict[str, str] | None:
    if path.is_dir():
        if (path / _SINGLE).is_file():
            return {}
        path = path / "model.safetensors.index.json"
    if path.suffix != ".json":
        return None
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such index; give a safetensors file, or the folder of a sharded one") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a safetensors index (a JSON file with a weight_map)") from None
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise UserError(f"{path}: its weight_map should map tensor names to file names")
    return weight_map


def _shards(path: Path) -> list[Path]:
    index = _index_of(path)
    if not index:
        return [path / _SINGLE if path.is_dir() else path]
    folder = path if path.is_dir() else path.parent
    for name in index.values():
        if Path(name).name != name:
            raise UserError(f"{path}: the index names {name!r}, which is outside its folder")
    return [folder / name for name in sorted(set(index.values()))]


def _header(path: Path, descriptor: int) -> dict[str, tuple[Entry, int]]:
    """Name → (entry, offset in the file); the whole file is accounted for, as the format demands."""
    bad = f"{path}: not a readable safetensors file, perhaps truncated"
    size = os.fstat(descriptor).st_size
    start = os.pread(descriptor, 8, 0)
    length = int.from_bytes(start, "little")
    if size < 8 or length > min(_LARGEST_HEADER, size - 8):
        if start.startswith(_TORCH):
            raise UserError(f"{path}: a torch file; save its tensors with safetensors.torch.save_file first")
        raise UserError(bad)
    try:
        header = json.loads(os.pread(descriptor, length, 8))
        header.pop("__metadata__", None)
        found = {}
        spans = []
        for name, item in header.items():
            entry = Entry(item["dtype"], tuple(int(n) for n in item["shape"]))
            begin, end = item["data_offsets"]
            if entry.dtype in WIDTH and end - begin != entry.size * WIDTH[entry.dtype]:
                raise UserError(f"{bad} ({name!r} has {end - begin} bytes for shape {list(entry.shape)})")
            found[name] = (entry, 8 + length + begin)
            spans.append((begin, end))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(bad) from None
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise UserError(f"{bad} (a hole or an overlap at byte {at})")
        at = end
    if 8 + length + at != size:
        raise UserError(f"{bad} ({size} bytes, its header promises {8 + length + at})")
    return found


class DictSource:
    """A dictionary of NumPy arrays, or of torch tensors on the CPU."""

    def __init__(self, tensors: Mapping[str, Any], label: str) -> None:
        self.label = label
        entries: dict[str, Entry] = {}
        self._bytes: dict[str, NDArray[np.uint8]] = {}
        for name, tensor in tensors.items():
            dtype, array = as_numpy(tensor)
            entries[name] = Entry(dtype, array.shape)
            self._bytes[name] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.entries: Mapping[str, Entry] = entries

    def read_into(self, name: str, start: int, buffer: NDArray[Any]) -> None:
        flat = buffer.reshape(-1).view(np.uint8)
        flat[:] = self._bytes[name][start : start + flat.size]

    def close(self) -> None:
        self._bytes = {}


_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def as_numpy(tensor: Any) -> tuple[str, NDArray[Any]]:
    """The safetensors dtype name and an array over the same memory; bfloat16 as its 16 bits."""
    if isinstance(tensor, (np.ndarray, np.generic)):
        return _NAMES[tensor.dtype.name], np.asarray(tensor)
    import torch  # only for those who bring torch tensors: they have paid for it

    plain = tensor.detach().cpu()
    if plain.dtype == torch.bfloat16:
        return "BF16", plain.contiguous().view(torch.uint16).numpy()
    array = plain.numpy()
    return _NAMES[array.dtype.name], array


def as_given(array: NDArray[Any], dtype: str, like: Any) -> Any:
    """The inverse of `as_numpy`: an array, or a torch tensor where ``like`` is one."""
    if isinstance(like, np.ndarray):
        return array
    import torch

    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "BF16" else tensor
