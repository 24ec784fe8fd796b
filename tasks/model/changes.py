"""Task vectors τ = θ − θ_0 as codecs with loss see them: read in pieces, computed in float64, rounded to float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.model.codec import Chunk
from tasks.model.dtypes import decode, encode, stored_as
from tasks.model.sources import TensorSource

_AT_ONCE = 1 << 20


def rounded(scale: float) -> float:
    """Digits that no order of summation changes: equal experts have equal files."""
    return float(f"{scale:.6g}")


def of(expert: TensorSource, base: TensorSource, names: list[str]) -> Iterator[NDArray[np.float32]]:
    """τ of some tensors, a piece at a time.

    Raises:
        UserError: an entry is not finite.
    """
    for name in names:
        size = expert.entries[name].size
        for start in range(0, size, _AT_ONCE):
            ours, theirs = (_floats(one, name, start, min(_AT_ONCE, size - start)) for one in (expert, base))
            change = (ours - theirs).astype(np.float32)
            if not np.isfinite(change).all():
                raise UserError(f"{expert.label}: tensor {name!r} is not finite; such an expert is not coded with loss")
            yield change


def _floats(source: TensorSource, name: str, start: int, count: int) -> NDArray[Any]:
    dtype = source.entries[name].dtype
    values = np.empty(count, stored_as(dtype))
    source.read_into(name, start * values.itemsize, values)
    return decode(values, dtype, np.float64)


def of_chunk(values: NDArray[Any], base: NDArray[Any] | None, dtype: str) -> NDArray[np.float32]:
    ours = decode(values, dtype, np.float64)
    return (ours if base is None else ours - decode(base, dtype, np.float64)).astype(np.float32)


def added(chunk: Chunk, at: NDArray[np.int64], change: NDArray[np.float64]) -> NDArray[Any]:
    """The base's entries of a chunk, those at ``at`` changed; the sum is taken in float64 and rounded once."""
    base = chunk.base if chunk.base is not None else np.zeros(chunk.count, stored_as(chunk.dtype))
    values = base.copy()
    with np.errstate(invalid="ignore"):
        values[at] = encode(decode(base[at], chunk.dtype, np.float64) + change, chunk.dtype)
    return values
