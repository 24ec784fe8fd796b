"""Many experts out of one set of arrays: a shared task vector, and for each expert a mask of one bit an entry.

- ``emr``: EMR-Merging (Huang et al. 2024, arXiv 2405.17461), section 3.2: u, the τ_t of largest magnitude among those
  with the sign of Σ τ (− where it is 0); m_t = [τ_t u > 0]; θ̂_t = θ_0 + r_t m_t ∘ u with r_t = Σ|τ_t| / Σ|m_t ∘ u| over
  all entries of the expert.
- ``tall``: TALL masks (Wang et al. 2024, arXiv 2405.07813), section 3: S = Σ τ; m_t = [|τ_t| > λ_t |S − τ_t|];
  θ̂_t = θ_0 + m_t ∘ S. The authors choose λ_t of 0.2 to 0.6 on validation data; here it is the one of these five with
  the least ‖τ_t − m_t ∘ S‖, or one given number for all.

Both need all experts at once. The file is a safetensors file: the shared vector, float32, under the base's names; under
``K NAME`` the mask of expert K, from 0 on, packed to bits and then by zstd; a header that says the rest, with a check
sum of every array and of itself. Tensors that are no floats are the base's, and have to be in every expert.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tasks.errors import UserError, first_problem
from tasks.model import changes, planes
from tasks.model.codec import DamagedChunkError
from tasks.model.coded import opened
from tasks.model.dtypes import FLOATS, decode, encode, fits, stored_as
from tasks.model.sinks import FileSink
from tasks.model.sources import FileSource, TensorSource, equal, single_file
from tasks.progress import Progress, silent
from tasks.storage import atomic
from tasks.storage.cache import md5_of

Kind = Literal["emr", "tall"]
LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)
_KEY = "chronomerge.shared"
_CHECK = "chronomerge.shared.crc"
Vector = NDArray[np.float64]


class Expert(BaseModel):
    """What a file knows of one of its experts."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    scale: float = Field(allow_inf_nan=False)
    """r_t, or 1."""
    lambda_: float | None = Field(default=None, ge=0)
    """λ_t of TALL masks."""
    error: float = Field(ge=0)
    """‖θ − θ̂‖ / ‖θ − θ_0‖ over all floats."""


class Packed(BaseModel):
    """The header of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    kind: Kind
    base: str = Field(pattern="^[0-9a-f]{32}$")
    """md5 of the base's file."""
    experts: list[Expert] = Field(min_length=1)
    checks: dict[str, int]
    """Array → the CRC-32 of its bytes."""


def pack(
    kind: Kind,
    experts: Sequence[Path],
    base: Path,
    target: Path,
    lambda_: float | None = None,
    progress: Progress = silent,
) -> Packed:
    """Write experts of a base as one file; ``target`` is complete or absent.

    Holds the content of the file, and one tensor of all experts in float64.

    Raises:
        UserError: a file is not readable, has other tensors than the base, is not finite, or has another tensor of
            integers than the base.
    """
    if lambda_ is not None and kind != "tall":
        raise UserError(f"lambda is for tall, not for {kind}")
    base = single_file(base)
    with ExitStack() as stack:
        origin = stack.enter_context(FileSource(base))
        sources = [opened(path, origin, stack) for path in experts]
        for path, source in zip(experts, sources, strict=True):
            _require_like(path, source, origin)
        arrays: dict[str, NDArray[Any]] = {}
        chosen = [lambda_] * len(experts)
        if kind == "tall" and lambda_ is None:
            chosen = _fitted(origin, sources)
        sizes = np.zeros((len(experts), 2))
        """Σ|τ| and Σ|m ∘ u|."""
        squares = np.zeros((len(experts), 3))
        """Σ τ², Σ τ ∘ m ∘ u, and Σ (m ∘ u)²."""
        for done, (name, vectors) in enumerate(_vectors(origin, sources)):
            exact = _shared(kind, vectors)
            arrays[name] = exact.astype(np.float32)
            for number, vector in enumerate(vectors):
                mask = _mask(kind, vector, exact, chosen[number])
                arrays[f"{number} {name}"] = np.frombuffer(planes.compress(np.packbits(mask)), np.uint8)
                masked = np.where(mask, arrays[name], 0).astype(np.float64)
                sizes[number] += np.abs(vector).sum(), np.abs(masked).sum()
                squares[number] += vector @ vector, vector @ masked, masked @ masked
            progress("packing", done + 1, len(origin.entries))
        told = []
        for path, lambda_of, (own, its), (whole, cross, square) in zip(experts, chosen, sizes, squares, strict=True):
            scale = changes.rounded(own / its) if kind == "emr" and its else 1.0
            lost = max(0.0, whole - 2 * scale * cross + scale**2 * square)
            error = float(f"{np.sqrt(lost / whole):.4g}") if whole else 0.0
            told.append(Expert(name=path.name, scale=scale, lambda_=lambda_of, error=error))
        checks = {name: zlib.crc32(array.data) for name, array in arrays.items()}
        content = Packed(kind=kind, base=md5_of(base), experts=told, checks=checks)
        text = content.model_dump_json()
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic.made(target) as part:
            save_file(arrays, part, {_KEY: text, _CHECK: str(zlib.crc32(text.encode()))})
            atomic.sync(part)
    return content


def about(path: Path) -> Packed:
    """The header of a file that `pack` wrote.

    Raises:
        UserError: it is none, or damaged.
    """
    with FileSource(path):  # a readable error
        pass
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    text = metadata.get(_KEY)
    if text is None:
        raise UserError(f"{path}: holds no packed experts (`chronomerge pack` writes such files)")
    if metadata.get(_CHECK) != str(zlib.crc32(text.encode())):
        raise UserError(f"{path}: is damaged (the check sum of its header differs); pack again")
    try:
        return Packed.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{path}: is damaged ({first_problem(error, 'the header')}); pack again") from None


def unpack(path: Path, number: int, base: Path, target: Path, progress: Progress = silent) -> Expert:
    """Write one expert, by its place from 0 on, as a safetensors file; ``target`` is complete or absent.

    Raises:
        UserError: no such expert, another base, or the file is damaged.
    """
    content = about(path)
    if not 0 <= number < len(content.experts):
        raise UserError(f"{path}: has experts 1 to {len(content.experts)}, no {number + 1}")
    base = single_file(base)
    if md5_of(base) != content.base:
        raise UserError(
            f"{path}: was packed against another base than {base}; give the one with the md5 {content.base}"
        )
    one = content.experts[number]
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileSource(base) as origin, safe_open(path, framework="numpy") as file:
        sink = FileSink(target, origin.entries)
        try:
            for done, (name, entry) in enumerate(origin.entries.items()):
                values = np.empty(entry.bytes // np.dtype(stored_as(entry.dtype)).itemsize, stored_as(entry.dtype))
                origin.read_into(name, 0, values)
                if entry.dtype in FLOATS:
                    change = one.scale * _masked(path, file, content.checks, f"{number} {name}", name, entry.size)
                    values = encode(decode(values, entry.dtype, np.float64) + change, entry.dtype)
                sink.write(name, 0, values)
                progress("unpacking", done + 1, len(origin.entries))
            sink.finish()
        finally:
            sink.abandon()  # what is unfinished, and the private folder
    return one


def _masked(path: Path, file: Any, checks: Mapping[str, int], mask: str, name: str, size: int) -> Vector:
    """m ∘ u of one tensor."""
    try:
        shared, packed = (file.get_tensor(one) for one in (name, mask))
        if any(zlib.crc32(array.data) != checks.get(one) for one, array in ((name, shared), (mask, packed))):
            raise DamagedChunkError("its check sum differs")
        bits = planes.decompress(packed.tobytes(), -(-size // 8))
        if shared.dtype != np.float32 or shared.shape != (size,):
            raise DamagedChunkError(f"no vector of {size} float32")
    except (SafetensorError, DamagedChunkError) as error:
        raise UserError(f"{path}: tensor {name!r} is damaged ({error}); pack again") from None
    chosen = np.unpackbits(np.frombuffer(bits, np.uint8), count=size).astype(np.bool_)
    return np.where(chosen, shared, 0).astype(np.float64)


def _vectors(base: TensorSource, experts: Sequence[TensorSource]) -> Iterator[tuple[str, list[Vector]]]:
    """Each float tensor with the task vectors of all experts, float64."""
    for name, entry in base.entries.items():
        if entry.dtype in FLOATS:
            origin = _floats(base, name)
            vectors = [_floats(one, name) - origin for one in experts]
            for one, vector in zip(experts, vectors, strict=True):
                if not np.isfinite(vector).all() or not fits(encode(vector, "F32"), "F32"):
                    raise UserError(f"{one.label}: tensor {name!r} is not finite; such an expert has no mask")
            yield name, vectors


def _floats(source: TensorSource, name: str) -> Vector:
    entry = source.entries[name]
    values = np.empty(entry.size, stored_as(entry.dtype))
    source.read_into(name, 0, values)
    return decode(values, entry.dtype, np.float64).astype(np.float64, copy=False)


def _shared(kind: Kind, vectors: Sequence[Vector]) -> Vector:
    total = np.sum(vectors, axis=0)
    if kind == "tall":
        return np.asarray(total)
    return np.where(total > 0, np.max(vectors, axis=0).clip(min=0), np.min(vectors, axis=0).clip(max=0))


def _mask(kind: Kind, vector: Vector, shared: Vector, lambda_: float | None) -> NDArray[np.bool_]:
    if kind == "emr":
        return np.asarray(vector * shared > 0)
    assert lambda_ is not None
    return np.asarray(np.abs(vector) > lambda_ * np.abs(shared - vector))


def _fitted(base: TensorSource, experts: Sequence[TensorSource]) -> list[float | None]:
    """For each expert the λ of `LAMBDAS` that loses the least of it; of equal ones the smallest."""
    lost = np.zeros((len(experts), len(LAMBDAS)))
    for _, vectors in _vectors(base, experts):
        shared = _shared("tall", vectors)
        for number, vector in enumerate(vectors):
            for place, lambda_ in enumerate(LAMBDAS):
                left = vector - np.where(_mask("tall", vector, shared, lambda_), shared, 0.0)
                lost[number, place] += left @ left
    return [LAMBDAS[place] for place in lost.argmin(axis=1)]


def _require_like(path: Path, expert: TensorSource, base: TensorSource) -> None:
    for name in sorted(expert.entries.keys() | base.entries.keys()):
        if name not in base.entries or name not in expert.entries:
            raise UserError(f"{path}: {name!r} is a tensor of the expert or of {base.label}, not of both")
        ours, theirs = expert.entries[name], base.entries[name]
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            raise UserError(
                f"{path}: tensor {name!r} is {ours.dtype} {list(ours.shape)}, in {base.label} {theirs.dtype} "
                f"{list(theirs.shape)}"
            )
        if ours.dtype not in FLOATS and not equal(expert, name, base, name):
            raise UserError(f"{path}: tensor {name!r} holds other integers than in {base.label}; they are not masked")
