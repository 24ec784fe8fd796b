"""A scaled sign for the largest changes, nothing for the others."""

from __future__ import annotations

import struct
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.model import changes, planes
from tasks.model.codec import Chunk, Codec, DamagedChunkError, Numbers
from tasks.model.dtypes import FLOATS, stored_as
from tasks.model.sources import TensorSource

_HEAD = struct.Struct("<IBI")
"""Entries that are not zero, bits of a remainder, bytes of the quotients."""


class Ternary(Codec):
    """ComPEFT: τ̂ = s·sign(τ) where abs(τ) is among the largest ``density`` of all entries, else 0; s = alpha·std(τ).

    Without ``alpha``, s is the mean of abs(τ) over the entries that stay, which has the least squared error. ``scope``
    says whether threshold and scale are the model's or each tensor's own. Entries of equal size at the threshold all
    stay. Gaps between entries are Golomb-Rice coded, one more bit is the sign. Tensors that are no floats lose nothing.
    """

    name: ClassVar[str] = "ternary"
    source: ClassVar[str] = "Yadav et al. 2023 (arXiv 2311.13171)"
    exact: ClassVar[bool] = False

    density: float = Field(default=0.1, gt=0, le=1)
    alpha: float | None = Field(default=None, gt=0)
    scope: Literal["model", "tensor"] = "model"

    def prepare(self, expert: TensorSource, base: TensorSource) -> Numbers:
        names = [name for name, entry in expert.entries.items() if entry.dtype in FLOATS]
        groups = [names] if self.scope == "model" else [[name] for name in names]
        numbers: dict[str, tuple[float, ...]] = {}
        for group in groups:
            threshold, scale = self._fitted(expert, base, group)
            numbers |= dict.fromkeys(group, (threshold, scale))
        return numbers

    def _fitted(self, expert: TensorSource, base: TensorSource, names: list[str]) -> tuple[float, float]:
        """The size from which on entries stay, and the scale of their signs; three passes over the changes."""
        count, total, squares = 0, 0.0, 0.0
        coarse = np.zeros(1 << 16, np.int64)
        for change in changes.of(expert, base, names):
            count, total = count + len(change), total + change.sum(dtype=np.float64)
            squares += np.square(change, dtype=np.float64).sum()
            coarse += np.bincount(_bits(change) >> 16, minlength=1 << 16)
        if not count:
            return 0.0, 0.0
        wanted = max(1, int(self.density * count))
        upper, above = _place(coarse, wanted)
        fine = np.zeros(1 << 16, np.int64)
        for change in changes.of(expert, base, names):
            bits = _bits(change)
            fine += np.bincount(bits[bits >> 16 == upper] & 0xFFFF, minlength=1 << 16)
        lower, _ = _place(fine, wanted - above)
        threshold = max(np.uint32(upper << 16 | lower).view(np.float32), np.finfo(np.float32).smallest_subnormal)
        if self.alpha is not None:
            spread = np.sqrt(max(0.0, squares - total * total / count) / max(1, count - 1))
            return float(threshold), changes.rounded(self.alpha * float(spread))
        stay, size = 0, 0.0
        for change in changes.of(expert, base, names):
            kept = np.abs(change[np.abs(change) >= threshold])
            stay, size = stay + len(kept), size + kept.sum(dtype=np.float64)
        return float(threshold), changes.rounded(size / stay) if stay else 0.0

    def encode(self, values: NDArray[Any], chunk: Chunk) -> bytes:
        if chunk.dtype not in FLOATS:
            return planes.pack(values, chunk.base, chunk.dtype)
        change = changes.of_chunk(values, chunk.base, chunk.dtype)
        at = np.flatnonzero(np.abs(change) >= np.float32(chunk.numbers[0]))
        return _packed(at, change[at] < 0)

    def decode(self, data: bytes, chunk: Chunk) -> NDArray[Any]:
        dtype = np.dtype(stored_as(chunk.dtype))
        if chunk.dtype not in FLOATS:
            return planes.unpack(data, chunk.base, chunk.dtype, dtype, chunk.count)
        if len(chunk.numbers) != 2:
            raise DamagedChunkError("without the scale of its signs")
        at, negative = _unpacked(data, chunk.count)
        scale = np.float64(chunk.numbers[1])
        return changes.added(chunk, at, np.where(negative, -scale, scale))


def _bits(change: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The sizes of changes as integers of the same order."""
    return np.abs(change).view(np.uint32)


def _place(histogram: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The bin that has the ``wanted``-th largest entry, and how many entries are in larger bins."""
    from_above = np.cumsum(histogram[::-1])
    index = int(np.searchsorted(from_above, wanted))
    return len(histogram) - 1 - index, int(from_above[index - 1]) if index else 0


def _packed(at: NDArray[np.int64], negative: NDArray[np.bool_]) -> bytes:
    """Golomb-Rice: the gap to the entry before as quotient (unary) and remainder, each in a stream of its own."""
    gaps = np.diff(at, prepend=-1) - 1
    bits = max(0, int(np.log2(max(1.0, np.log(2) * (gaps.mean() + 1))))) if len(gaps) else 0
    quotients = gaps >> bits
    unary = np.zeros(int(quotients.sum()) + len(gaps), np.bool_)
    unary[np.cumsum(quotients + 1) - 1] = True
    remainders = (gaps[:, None] >> np.arange(bits)) & 1
    first = np.packbits(unary)
    rest = np.packbits(np.concatenate([remainders.reshape(-1).astype(np.bool_), negative]))
    return _HEAD.pack(len(at), bits, len(first)) + first.tobytes() + rest.tobytes()


def _unpacked(data: bytes, count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The inverse of `_packed`: places below ``count``, and which of them are negative.

    Raises:
        DamagedChunkError: the bytes are no such code.
    """
    if len(data) < _HEAD.size:
        raise DamagedChunkError("cut off")
    entries, bits, length = _HEAD.unpack_from(data)
    streams = np.frombuffer(data, np.uint8, offset=_HEAD.size)
    if entries > count or bits > 32 or len(streams) != length + -(-(entries * (bits + 1)) // 8):
        raise DamagedChunkError("a code of another length")
    ends = np.flatnonzero(np.unpackbits(streams[:length]))
    if len(ends) != entries:
        raise DamagedChunkError("a code of another number of entries")
    rest = np.unpackbits(streams[length:])[: entries * (bits + 1)]
    remainders = rest[: entries * bits].reshape(entries, bits).astype(np.int64) @ (1 << np.arange(bits, dtype=np.int64))
    gaps = ((np.diff(ends, prepend=-1) - 1) << bits) + remainders
    at = np.cumsum(gaps + 1) - 1
    if entries and (at[-1] >= count or gaps.min() < 0):
        raise DamagedChunkError("an entry beyond its end")
    return at, rest[entries * bits :].astype(np.bool_)
