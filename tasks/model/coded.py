"""Coded experts: their file, written and read chunk by chunk, in flat memory.

The file is a safetensors file that holds bytes: each tensor of the expert is one of type U8, its chunks one after
another and then a table of them, (bytes of the chunk, CRC-32 of the decoded entries) each. The header says which codec
wrote it, the dtypes and shapes of the expert, the md5 of the base that it is coded against, and the md5 of the expert
as a safetensors file, which is what `decode` makes. What a header may claim is bounded by that base: the expert has its
tensors and shapes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import threading
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import safe_open

from tasks.errors import UserError, first_problem
from tasks.model.codec import Chunk, Codec, DamagedChunkError, Numbers, chosen
from tasks.model.dtypes import BITS, FLOATS, as_given, stored_as
from tasks.model.dtypes import decode as numbers_of
from tasks.model.dtypes import encode as stored_numbers
from tasks.model.factors import Factors, Predicted
from tasks.model.sources import FileSource, TensorEntry, TensorSource
from tasks.params import Named
from tasks.progress import Progress, silent
from tasks.storage import atomic
from tasks.storage.cache import md5_of

if TYPE_CHECKING:
    import torch

    from tasks.model.checkpoints import Weights

SUFFIX = ".weights"
"""Of a file that may be coded; its content says whether it is."""
_BASE = "data/history/weights/base.safetensors"
"""Of a project."""
_KEY = "chronomerge.coded"
_START = b'{"__metadata__":{"' + _KEY.encode()
_VERSION = 1
_CHUNK = 1 << 20
"""Entries of a chunk."""
_TABLE = struct.Struct("<II")
_THREADS = 4
_CACHED = 4
"""Decoded chunks that a source holds, beside one for each thread."""


class _Content(BaseModel):
    """A file by hash."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    md5: str = Field(pattern="^[0-9a-f]{32}$")
    size: int = Field(ge=0)


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    dtype: str
    shape: list[int]
    numbers: list[float] = Field(default=[], max_length=16)


class _Factors(BaseModel):
    """Which stored array is which part of a `Factors`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    left: str
    right: str
    scale: float = Field(allow_inf_nan=False)
    rows: str | None = None
    middle: str | None = None
    gain: str | None = None


class Coding(BaseModel):
    """The header of a coded expert."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: int = Field(ge=1, le=_VERSION)
    codec: dict[str, Any]
    chunk: int = Field(ge=1, le=1 << 22)
    error: float = Field(ge=0)
    """‖θ − θ̂‖ / ‖θ − θ_0‖ over all floats; 0 where every bit comes back."""
    base: _Content
    decoded: _Content
    tensors: dict[str, _Tensor]
    factors: dict[str, _Factors] = {}
    """Weight → the factors of its change."""

    @field_validator("codec")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("name"), str):
            raise ValueError("a codec has a name")
        return value


@dataclass(frozen=True)
class _Part:
    """A chunk's place: where its bytes start in the coded tensor, how many there are; the CRC-32 of what they mean."""

    start: int
    length: int
    crc: int


def is_coded(path: Path) -> bool:
    """Whether a file is a coded expert, by its first bytes."""
    if not path.is_file():  # a pipe would wait for its writer
        return False
    try:
        with path.open("rb") as file:
            return file.read(8 + len(_START))[8:] == _START
    except OSError:
        return False


def stored(stem: Path) -> Path:
    """The file of weights at a path without its ending: the coded one, where there is one."""
    coded = stem.with_name(stem.name + SUFFIX)
    return coded if coded.exists() else stem.with_name(f"{stem.name}.safetensors")


def coding(path: Path) -> Coding:
    """The header of a coded expert.

    Raises:
        UserError: it is not readable, or another program's.
    """
    with FileSource(path):  # checks the header
        if not is_coded(path):
            raise UserError(f"{path}: is no coded expert: a safetensors file already")
    with safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get(_KEY, "")
    try:
        return Coding.model_validate_json(text)
    except ValidationError as error:
        problem = first_problem(error, "the header")
        raise UserError(
            f"{path}: not a coded expert that this chronomerge reads ({problem}); fetch it again, or update "
            "(git pull && make install)"
        ) from None


def encode(
    codec: Codec,
    source: Path,
    base: Path,
    target: Path,
    progress: Progress = silent,
    factors: Mapping[str, Factors] | None = None,
) -> Coding:
    """Code an expert against a base, both safetensors files; ``target`` is complete or absent.

    ``factors`` are those of an adapter, by the names of the weights that it changes: they are stored too, and what they
    predict takes the place of the base's weights.

    Raises:
        UserError: a file is not readable, the two do not have the same tensors, or the codec cannot code the expert.
    """
    with FileSource(source) as expert, FileSource(base) as origin, ThreadPoolExecutor(_THREADS) as pool:
        _require_like(source, expert.entries, origin)
        numbers = codec.prepare(expert, origin)
        named, arrays = _named(factors or {}, origin)
        writer = _Writer(codec, numbers, expert, Predicted(origin, factors) if factors else origin)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic.made(target) as part:
            spool = part.with_name("frames")
            with spool.open("wb") as frames:
                coded = writer.write(pool, frames, progress)
            content = Coding(
                version=_VERSION, codec={"name": codec.name, **codec.model_dump(mode="json")}, chunk=_CHUNK,
                error=writer.error, base=_Content(md5=md5_of(base), size=base.stat().st_size), decoded=writer.decoded,
                tensors={
                    n: _Tensor(dtype=e.dtype, shape=list(e.shape), numbers=list(numbers.get(n, ())))
                    for n, e in expert.entries.items()
                },
                factors=named,
            )  # fmt: skip
            entries = {name: TensorEntry("U8", (size,)) for name, size in coded.items()}
            entries |= {name: TensorEntry("F32", array.shape) for name, array in arrays.items()}
            with part.open("wb") as file, spool.open("rb") as frames:
                file.write(_header(entries, {_KEY: content.model_dump_json()}))
                shutil.copyfileobj(frames, file, 1 << 20)
                for array in arrays.values():
                    file.write(np.ascontiguousarray(array, "<f4").data)
            spool.unlink()
            atomic.sync(part)
    return content


def base_around(path: Path) -> Path:
    """The base of the project that a coded expert lies in.

    Raises:
        UserError: there is none.
    """
    base = next((folder / _BASE for folder in path.absolute().parents if (folder / _BASE).is_file()), None)
    if base is None:
        raise UserError(f"{path}: no {_BASE} in the folders around it; name the base with --base")
    return base


def decode(path: Path, base: Path, target: Path, progress: Progress = silent) -> Coding:
    """Make the safetensors file of a coded expert; ``target`` is complete or absent.

    Raises:
        UserError: the coded file or the base is damaged, or it is another base.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileSource(base) as origin, CodedSource(path, origin) as source, ThreadPoolExecutor(_THREADS) as pool:
        digest, total, done = hashlib.md5(usedforsecurity=False), sum(e.size for e in source.entries.values()), 0
        with atomic.made(target) as part, part.open("wb") as file:
            header = _header(source.entries)
            file.write(header)
            digest.update(header)
            for values in _in_order(pool, lambda place: source.chunk(*place), source.places()):
                plain = values.view(np.uint8).data
                file.write(plain)
                digest.update(plain)
                done += len(values)
                progress("decoding", done, total)
            file.flush()
            if digest.hexdigest() != source.coding.decoded.md5:
                raise UserError(f"{path}: is damaged, its header or its parts: it decodes to other bytes than it names")
            atomic.sync(part)
        return source.coding


def as_safetensors(path: Path, base: Path, target: Path) -> None:
    """The weights of a file, coded or not, as a safetensors file.

    Raises:
        UserError: as `decode`, or it is not readable.
    """
    if is_coded(path):
        decode(path, base, target)
        return
    with FileSource(path):  # a readable error before a copy
        pass
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic.made(target) as part:
        shutil.copyfile(path, part)


def load(path: Path, base: Path) -> Weights:
    """All tensors of a file of weights, coded or not, on the CPU, in its own dtypes.

    Raises:
        UserError: as `decode`, or it is not readable.
    """
    from tasks.model import checkpoints

    if not is_coded(path):
        return checkpoints.load(path)
    with FileSource(base) as origin, CodedSource(path, origin) as source:
        return {name: tensor(source, name) for name in source.entries}


def tensor(source: TensorSource, name: str) -> torch.Tensor:
    """One tensor of a source, on the CPU, in its own dtype."""
    import torch

    entry = source.entries[name]
    array = np.empty(entry.bytes, np.uint8)
    source.read_into(name, 0, array)
    shaped: torch.Tensor = as_given(
        array.view(stored_as(entry.dtype)).reshape(entry.shape), entry.dtype, torch.empty(0)
    )
    return shaped


def opened(path: Path, base: TensorSource, stack: ExitStack) -> TensorSource:
    """A file of weights to read, coded or not; ``stack`` closes it.

    Raises:
        UserError: it is not readable, or coded against other tensors.
    """
    if is_coded(path):
        return stack.enter_context(CodedSource(path, base))
    return stack.enter_context(FileSource(path))


class CodedSource:
    """The decoded tensors of a coded expert, a `TensorSource`; chunks are decoded when they are read.

    Every chunk is compared with its CRC-32: a damaged file, or another base, is an error and no wrong weight.

    Raises:
        UserError: the file is damaged, or has not the tensors of ``base``.
    """

    def __init__(self, path: Path, base: TensorSource) -> None:
        self.label, self.notes, self.coding = str(path), list[str](), coding(path)
        self._path, self._base = path, base
        try:
            self._codec = chosen(Named.model_validate(self.coding.codec))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        self._file = FileSource(path)
        self.entries: Mapping[str, TensorEntry] = {
            name: TensorEntry(one.dtype, tuple(one.shape)) for name, one in self.coding.tensors.items()
        }
        self._cached: OrderedDict[tuple[str, int], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()
        try:
            _require_like(path, self.entries, base)
            parts = dict.fromkeys(part for one in self.coding.factors.values() for part in _parts(one).values())
            if [*self._file.entries] != [*self.entries, *parts]:
                raise UserError(f"{path}: is damaged: its header names other tensors than it has")
            if self.coding.factors:
                self._base = Predicted(base, self._read_factors())
            self._parts = {name: self._table(name) for name in self.entries}
        except BaseException:
            self.close()
            raise

    def places(self) -> Iterator[tuple[str, int]]:
        """Every chunk, in the order of the file: tensor and number."""
        return ((name, number) for name, parts in self._parts.items() for number in range(len(parts)))

    def chunk(self, name: str, number: int) -> NDArray[Any]:
        """The entries of one chunk, as they are stored."""
        part, entry = self._parts[name][number], self.entries[name]
        raw = np.empty(part.length, np.uint8)
        self._file.read_into(name, part.start, raw)
        known = _known(entry, name, number, self.coding.chunk, self._base, self.coding.tensors[name].numbers)
        try:
            values = self._codec.decode(raw.tobytes(), known)
        except DamagedChunkError as error:
            raise UserError(f"{self._path}: tensor {name!r} is damaged ({error}); fetch the file again") from None
        if zlib.crc32(values.view(np.uint8).data) != part.crc:
            raise UserError(f"{self._path}: tensor {name!r} {self._why()}")
        return values

    def read_into(self, name: str, start: int, buffer: NDArray[Any]) -> None:
        out = buffer.reshape(-1).view(np.uint8)
        size = self.coding.chunk * np.dtype(stored_as(self.entries[name].dtype)).itemsize
        done = 0
        while done < len(out):
            number, skipped = divmod(start + done, size)
            plain = self._recent(name, number).view(np.uint8)[skipped : skipped + len(out) - done]
            out[done : done + len(plain)] = plain
            done += len(plain)

    def close(self) -> None:
        self._file.close()
        self._cached.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _recent(self, name: str, number: int) -> NDArray[Any]:
        """A chunk; those that were read last need no decoding."""
        with self._lock:
            if (name, number) in self._cached:
                self._cached.move_to_end((name, number))
                return self._cached[name, number]
        values = self.chunk(name, number)
        with self._lock:
            self._cached[name, number] = values
            while len(self._cached) > _CACHED:
                self._cached.popitem(last=False)
        return values

    def _read_factors(self) -> dict[str, Factors]:
        arrays: dict[str, NDArray[np.float32]] = {}
        factors = {}
        for weight, one in self.coding.factors.items():
            for part in _parts(one).values():
                if part not in arrays and self._file.entries[part].dtype == "F32":
                    arrays[part] = np.empty(self._file.entries[part].shape, np.float32)
                    self._file.read_into(part, 0, arrays[part])
            entry = self.entries.get(weight)
            try:
                factors[weight] = Factors(scale=one.scale, **{name: arrays[part] for name, part in _parts(one).items()})
            except KeyError as error:
                raise UserError(f"{self._path}: is damaged: factor {error} is no float32") from None
            if entry is None or entry.dtype != "F32" or not factors[weight].fit(entry.shape):
                raise UserError(f"{self._path}: is damaged: its factors do not fit tensor {weight!r}")
        return factors

    def _table(self, name: str) -> list[_Part]:
        count = _chunks(self.entries[name], self.coding.chunk)
        stored_bytes = self._file.entries[name]
        length = count * _TABLE.size
        if stored_bytes.dtype != "U8" or stored_bytes.size < length:
            raise UserError(f"{self._path}: tensor {name!r} is damaged: too few bytes for its table")
        raw = np.empty(length, np.uint8)
        self._file.read_into(name, stored_bytes.size - length, raw)
        parts, start = [], 0
        for size, crc in _TABLE.iter_unpack(raw.tobytes()):
            parts.append(_Part(start, size, crc))
            start += size
        if start != stored_bytes.size - length:
            raise UserError(f"{self._path}: tensor {name!r} is damaged: its table does not fit its bytes")
        return parts

    def _why(self) -> str:
        base = Path(self._base.label)
        if base.is_file() and md5_of(base) != self.coding.base.md5:
            return f"was coded against another base than {base}; give the base with the md5 {self.coding.base.md5}"
        return "is damaged (its check sum differs); fetch the file again"


class _Writer:
    """Codes every chunk of an expert, and hashes what a reader will decode."""

    def __init__(self, codec: Codec, numbers: Numbers, expert: TensorSource, base: TensorSource):
        self._codec, self._numbers, self._expert, self._base = codec, numbers, expert, base
        self._changed = self._lost = 0.0
        self._digest = hashlib.md5(_header(expert.entries), usedforsecurity=False)
        self._size = len(_header(expert.entries)) + sum(e.bytes for e in expert.entries.values())

    @property
    def decoded(self) -> _Content:
        return _Content(md5=self._digest.hexdigest(), size=self._size)

    @property
    def error(self) -> float:
        # Digits that no order of summation changes: equal experts have equal files.
        return float(f"{np.sqrt(self._lost / self._changed):.4g}") if self._changed else 0.0

    def write(self, pool: ThreadPoolExecutor, file: Any, progress: Progress) -> dict[str, int]:
        """Write all chunks and tables; the bytes of each coded tensor."""
        total, done = sum(e.size for e in self._expert.entries.values()), 0
        sizes = {}
        for name, entry in self._expert.entries.items():
            numbers = [(name, number) for number in range(_chunks(entry, _CHUNK))]
            table, length = b"", 0
            for data, values, changed, lost in _in_order(pool, lambda place: self._chunk(*place), numbers):
                file.write(data)
                plain = values.view(np.uint8).data
                self._digest.update(plain)
                self._changed, self._lost = self._changed + changed, self._lost + lost
                table += _TABLE.pack(len(data), zlib.crc32(plain))
                length += len(data)
                done += len(values)
                progress("coding the expert", done, total)
            file.write(table)
            sizes[name] = length + len(table)
        return sizes

    def _chunk(self, name: str, number: int) -> tuple[bytes, NDArray[Any], float, float]:
        """Coded bytes, what they decode to, and the squared norms of the change and of what is lost of it."""
        entry, codec = self._expert.entries[name], self._codec
        known = _known(entry, name, number, _CHUNK, self._base, self._numbers.get(name, ()))
        values = _entries(self._expert, name, number, _CHUNK, known.count)
        data = codec.encode(values, known)
        if codec.exact:
            return data, values, 0.0, 0.0
        back = codec.decode(data, known)
        return data, back, _squared(values, known.base, entry.dtype), _squared(values, back, entry.dtype)


def _named(
    factors: Mapping[str, Factors], base: TensorSource
) -> tuple[dict[str, _Factors], dict[str, NDArray[np.float32]]]:
    """Names for the arrays of factors, equal ones once; ``base`` has the weights that they change."""
    names: dict[tuple[tuple[int, ...], bytes], str] = {}
    arrays: dict[str, NDArray[np.float32]] = {}
    named = {}
    for weight, one in factors.items():
        parts = {}
        for part, array in one.arrays.items():
            content = array.shape, hashlib.sha256(np.ascontiguousarray(array).data).digest()
            parts[part] = names.setdefault(content, f"factor {len(names)}")
            arrays[parts[part]] = array
        if base.entries[weight].dtype != "F32":
            raise UserError(f"{base.label}: tensor {weight!r} is no float32; adapters of others are stored lossless")
        named[weight] = _Factors(scale=one.scale, **parts)
    return named, arrays


def _parts(one: _Factors) -> dict[str, str]:
    """Part of a `Factors` → the stored array."""
    named = {name: getattr(one, name) for name in ("left", "right", "rows", "middle", "gain")}
    return {name: part for name, part in named.items() if part is not None}


def _known(
    entry: TensorEntry, name: str, number: int, chunk: int, base: TensorSource, numbers: Iterable[float]
) -> Chunk:
    like = np.dtype(stored_as(entry.dtype))
    count = min(chunk, entry.bytes // like.itemsize - number * chunk)
    dtype, origin = base.entries[name].dtype, None
    if dtype == entry.dtype:
        origin = _entries(base, name, number, chunk, count)
    elif dtype in FLOATS and entry.dtype in FLOATS:
        plain = numbers_of(_entries(base, name, number, chunk, count), dtype, np.float64)
        origin = stored_numbers(plain, entry.dtype)
    return Chunk(entry.dtype, count, origin, tuple(numbers))


def _squared(values: NDArray[Any], other: NDArray[Any] | None, dtype: str) -> float:
    """The squared distance of stored floats."""
    if other is None or dtype not in FLOATS:
        return 0.0
    difference = numbers_of(values, dtype, np.float64) - numbers_of(other, dtype, np.float64)
    return float(np.square(difference).sum())


def _entries(source: TensorSource, name: str, number: int, chunk: int, count: int) -> NDArray[Any]:
    values = np.empty(count, stored_as(source.entries[name].dtype))
    source.read_into(name, number * chunk * values.itemsize, values)
    return values


def _chunks(entry: TensorEntry, chunk: int) -> int:
    return -(-(entry.bytes // np.dtype(stored_as(entry.dtype)).itemsize) // chunk)


def _require_like(path: Path, entries: Mapping[str, TensorEntry], base: TensorSource) -> None:
    """An expert has the base's tensors, and of no other shape: so a header cannot ask for more memory than a base has.

    Raises:
        UserError: it has others.
    """
    for name in sorted(entries.keys() | base.entries.keys()):
        if name not in base.entries or name not in entries:
            raise UserError(f"{path}: {name!r} is a tensor of the expert or of {base.label}, not of both")
        ours, theirs = entries[name], base.entries[name]
        if ours.dtype not in BITS:
            raise UserError(f"{path}: tensor {name!r} has the dtype {ours.dtype!r}, which safetensors does not have")
        if ours.shape != theirs.shape and {ours.shape, theirs.shape} != {(), (1,)}:
            raise UserError(
                f"{path}: tensor {name!r} has shape {list(ours.shape)}, in {base.label} {list(theirs.shape)}"
            )


def _header(entries: Mapping[str, TensorEntry], metadata: Mapping[str, str] | None = None) -> bytes:
    """The header of a safetensors file with these tensors in this order, as its library writes one."""
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, entry in entries.items():
        place = [offset, offset + entry.bytes]
        content[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": place}
        offset = place[1]
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


T = TypeVar("T")
S = TypeVar("S")


def _in_order(pool: ThreadPoolExecutor, function: Callable[[S], T], given: Iterable[S]) -> Iterator[T]:
    """Results in the order of what is given, a few of them ahead."""
    waiting: deque[Future[T]] = deque()
    try:
        for one in given:
            waiting.append(pool.submit(function, one))
            if len(waiting) > _THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
