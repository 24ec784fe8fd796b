"""Models to read: safetensors files (one, or shards under an index) or dictionaries of arrays, piece by piece."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from tasks.errors import UserError
from tasks.model.dtypes import BITS, as_numpy

SINGLE = ("open_clip_model.safetensors", "model.safetensors")
"""What open_clip and transformers call the weights in a model's folder."""
INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02")
"""How torch's files begin: archives, and the pickles of older versions."""
_NUMBERED = re.compile(r"-(\d+)-of-(\d+)(?=\.safetensors$)")
"""The number of a shard, and how many there are."""
_LFS = b"version https://git-lfs"
_HASHED_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a model, as its header describes it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * BITS[self.dtype] // 8


class TensorSource(Protocol):
    """A model to read. Methods may be called from several threads."""

    label: str
    """Its path, or what else names it in messages."""
    entries: Mapping[str, TensorEntry]
    notes: list[str]
    """What the reader should know about how it was read."""

    def read_into(self, name: str, start: int, buffer: NDArray[Any]) -> None:
        """Fill ``buffer`` with the raw bytes of a tensor, from byte ``start`` on."""


def raw_bytes(source: TensorSource, name: str, start: int, count: int) -> NDArray[np.uint8]:
    """Bytes of a tensor as they are stored."""
    buffer = np.empty(count, np.uint8)
    source.read_into(name, start, buffer)
    return buffer


def equal(a: TensorSource, name: str, b: TensorSource, other: str) -> bool:
    """Whether two tensors have the same dtype, shape (0-d is 1-element 1-d) and bytes; reads no more than it has to."""
    first, second = a.entries[name], b.entries[other]
    same_shape = first.shape == second.shape or {first.shape, second.shape} == {(), (1,)}
    if first.dtype != second.dtype or not same_shape:
        return False
    return all(
        np.array_equal(raw_bytes(a, name, start, count), raw_bytes(b, other, start, count))
        for start in range(0, first.bytes, _HASHED_AT_ONCE)
        for count in (min(_HASHED_AT_ONCE, first.bytes - start),)
    )


def content_hash(source: TensorSource, name: str) -> bytes:
    """SHA-256 of one tensor: dtype, shape and bytes."""
    entry = source.entries[name]
    digest = hashlib.sha256(f"{entry.dtype}{list(entry.shape)}".encode())
    for start in range(0, entry.bytes, _HASHED_AT_ONCE):
        digest.update(raw_bytes(source, name, start, min(_HASHED_AT_ONCE, entry.bytes - start)).data)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class _Location:
    descriptor: int
    offset: int
    path: Path


class FileSource:
    """A safetensors file, or several under an index JSON (``model.safetensors.index.json``, or its folder).

    The safetensors library reads the header. Tensors are read with pread rather than through a memory map: mapped pages
    would count as resident, and gigabytes of them do. A file that is replaced meanwhile is read as it was; one that is
    written to in place is refused, since a technique reads a tensor more than once.

    Raises:
        UserError: a file is missing, truncated or not safetensors, or the index names what its shards lack; or, at
            `read_into`, a file has changed since it was opened.
    """

    def __init__(self, path: Path, label: str = "") -> None:
        self.label = label or str(path)
        self.notes: list[str] = []
        self._entries: dict[str, TensorEntry] = {}
        self.entries: Mapping[str, TensorEntry] = self._entries
        self._locations: dict[str, _Location] = {}
        self._descriptors: list[int] = []
        self._versions: dict[int, tuple[int, int]] = {}
        try:
            single, index = _parts_of(path, self.notes)
            for shard in [single] if single else _shards(path, index, self.notes):
                self._open(shard)
            for name, shard_name in index.items():
                if name not in self.entries:
                    raise UserError(f"{path}: the index puts {name!r} into {shard_name}, which lacks it")
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> None:
        descriptor = _opened(path)
        self._descriptors.append(descriptor)
        self._versions[descriptor] = _version(descriptor)
        for name, (entry, offset) in _header(path, descriptor).items():
            if name in self.entries:
                raise UserError(f"{path}: tensor {name!r} is in two shards; keep it in one")
            self._entries[name] = entry
            self._locations[name] = _Location(descriptor, offset, path)

    def read_into(self, name: str, start: int, buffer: NDArray[Any]) -> None:
        location = self._locations[name]
        view = buffer.reshape(-1).view(np.uint8).data
        offset = location.offset + start
        while len(view):
            try:
                count = os.preadv(location.descriptor, [view], offset)
            except OSError as error:
                raise UserError(f"{location.path}: cannot be read ({error.strerror})") from None
            if count == 0:
                raise UserError(f"{location.path}: became shorter while it was read")
            view, offset = view[count:], offset + count
        if _version(location.descriptor) != self._versions[location.descriptor]:
            raise UserError(f"{location.path}: changed while it was read; run again when nothing writes to it")

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _version(descriptor: int) -> tuple[int, int]:
    """Bytes and time of the last change of an open file: they tell whether it is written to in place."""
    about = os.fstat(descriptor)
    return about.st_size, about.st_mtime_ns


def single_file(path: Path) -> Path:
    """The one safetensors file of a model, which may be a folder.

    Raises:
        UserError: there is none, or there are several under an index.
    """
    single, _ = _parts_of(path, [])
    if single is None:
        raise UserError(f"{path}: has its weights in several files; write them into one, with `chronomerge merge` say")
    return single


def _parts_of(path: Path, notes: list[str]) -> tuple[Path | None, dict[str, str]]:
    """A single file, or none and an index: tensor name → file name."""
    if path.is_dir():
        singles, index = [name for name in SINGLE if (path / name).is_file()], path / INDEX
        if singles:
            others = [*singles[1:], *([INDEX] if index.exists() else [])]
            if others:
                notes.append(f"{path} holds both {' and '.join([singles[0], *others])}: {singles[0]} was read")
            return path / singles[0], {}
        if not index.exists():
            if (path / _ADAPTER).exists():
                raise UserError(f"{path}: is a PEFT adapter (it has {_ADAPTER}), not a model")
            raise UserError(f"{path}: a folder without {', '.join(SINGLE)} or {INDEX}; name the file in it to read")
        path = index
    if path.suffix != ".json":
        return path, {}
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such index; give a safetensors file, or the folder of a sharded one") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: not a safetensors index (a JSON file with a weight_map)") from None
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise UserError(f"{path}: its weight_map should map tensor names to file names")
    if not weight_map:
        raise UserError(f"{path}: its weight_map is empty")
    return None, weight_map


def _shards(path: Path, index: Mapping[str, str], notes: list[str]) -> list[Path]:
    """The files that an index names; notes what else lies beside them.

    Raises:
        UserError: a name leads out of the folder, or the index leaves out one of the numbered files.
    """
    folder = path if path.is_dir() else path.parent
    for name in index.values():
        if Path(name).name != name or "\0" in name:
            raise UserError(f"{path}: the index names {name!r}, which is outside its folder")
    named = set(index.values())
    series = {name[: match.start()] + match[2] for name in named if (match := _NUMBERED.search(name))}
    for name in sorted(one.name for one in folder.glob("*.safetensors") if one.name not in named):
        match = _NUMBERED.search(name)
        if match and name[: match.start()] + match[2] in series:
            raise UserError(f"{path}: the index leaves out {name}, one of its numbered files; is it of another model?")
        if match:
            notes.append(f"{folder} holds {name}, which the index does not name: it was not read")
    return [folder / name for name in sorted(named)]


def header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one safetensors file, by name in the order of the file.

    Raises:
        UserError: it is missing, or no safetensors file; says what it is instead, where that shows.
    """
    descriptor = _opened(path)
    try:
        return {name: entry for name, (entry, _) in _header(path, descriptor).items()}
    finally:
        os.close(descriptor)


def require_weights(path: Path) -> None:
    """Refuse what a torch file is not, before torch reads it.

    Raises:
        UserError: it is missing, no regular file, a git-lfs pointer, or text.
    """
    descriptor = _opened(path)
    try:
        if problem := _no_weights(path, _start(path, descriptor)):
            raise UserError(f"{path}: {problem}")
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a null byte
        raise UserError(f"{str(path)!r}: cannot be read ({error})") from None


def _header(path: Path, descriptor: int) -> dict[str, tuple[TensorEntry, int]]:
    """Name → (entry, offset in the file).

    The safetensors library checks the header, and that the tensors follow one another without a hole; so their sizes
    tell where they are.

    Raises:
        UserError: it is not a safetensors file; says what it is instead, where that shows.
    """
    start, size = _start(path, descriptor), os.fstat(descriptor).st_size
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.offset_keys()
            entries = {n: TensorEntry(s.get_dtype(), tuple(s.get_shape())) for n in names for s in (file.get_slice(n),)}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: {_what_else(path, start, size, error)}") from None
    offset = 8 + int.from_bytes(start[:8], "little")
    located: dict[str, tuple[TensorEntry, int]] = {}
    for name, entry in entries.items():
        located[name] = entry, offset
        offset += entry.bytes
    if offset != size:
        raise UserError(f"{path}: changed while it was read")
    return located


def _what_else(path: Path, start: bytes, size: int, error: Exception) -> str:
    """What a file is that is not a readable safetensors file."""
    if start.startswith(TORCH_STARTS):
        return "a torch file; save its tensors with safetensors.torch.save_file first"
    if start.startswith(_LFS):
        return _no_weights(path, start)
    if start.lstrip()[:1] in (b"{", b"[") and int.from_bytes(start[:8], "little") > size:
        return "a JSON file; give the .safetensors file, or an index whose name ends in .json"
    reason = " ".join(str(error).split()).removeprefix("Error while deserializing header: ")
    if "unknown variant" in reason:
        dtype = reason.partition("unknown variant `")[2].partition("`")[0]
        return f"{_tensor_of(path, dtype)} has the dtype {dtype}, which the safetensors format does not have"
    if problem := _no_weights(path, start):
        return problem
    if size == 0:
        reason = "it is empty"
    return f"not a readable safetensors file, perhaps truncated ({reason[:200]})"


def _start(path: Path, descriptor: int) -> bytes:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise UserError(f"{path}: not a regular file")
    return os.pread(descriptor, 64, 0)


def _no_weights(path: Path, start: bytes) -> str:
    """What a file is that holds no weights, in whatever format; empty where it may."""
    if start.startswith(_LFS):
        return "a git-lfs pointer, not the weights; fetch them with `git lfs pull`"
    kind = "safetensors file" if path.suffix == ".safetensors" else "checkpoint"
    return f"a text file, not a {kind}" if _is_text(start) else ""


def _is_text(start: bytes) -> bool:
    """A header begins with its length, which has bytes of 0: no text has them."""
    text = start.decode("utf-8", errors="ignore")
    return len(text) > 0 and all(c.isprintable() or c in "\n\r\t" for c in text)


def _tensor_of(path: Path, dtype: str) -> str:
    """The first tensor of a dtype, where the header shows it."""
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    try:
        items = dict(json.loads(header)).items()
    except (ValueError, TypeError, RecursionError):
        return "a tensor"
    named = (n for n, item in items if isinstance(item, dict) and item.get("dtype") == dtype)
    return next((f"tensor {name!r}" for name in named), "a tensor")


class DictSource:
    """A dictionary of NumPy arrays, or of torch tensors on the CPU.

    Raises:
        UserError: one of them is something else, or of a dtype that safetensors has not.
    """

    def __init__(self, tensors: Mapping[str, Any], label: str) -> None:
        self.label = label
        self.notes: list[str] = []
        entries: dict[str, TensorEntry] = {}
        self._bytes: dict[str, NDArray[np.uint8]] = {}
        for name, tensor in tensors.items():
            dtype, array = as_numpy(tensor, name)
            entries[name] = TensorEntry(dtype, array.shape)
            self._bytes[name] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.entries: Mapping[str, TensorEntry] = entries

    def read_into(self, name: str, start: int, buffer: NDArray[Any]) -> None:
        flat = buffer.reshape(-1).view(np.uint8)
        flat[:] = self._bytes[name][start : start + flat.size]

    def close(self) -> None:
        self._bytes = {}
