"""The sign of every change, and one number a tensor."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.model import changes, planes
from tasks.model.codec import Chunk, Codec, DamagedChunkError, Numbers
from tasks.model.dtypes import FLOATS, stored_as
from tasks.model.sources import TensorSource

_NONE_ZERO, _SOME_ZERO = b"\0", b"\1"


class Signs(Codec):
    """BitDelta: τ̂ = s·sign(τ), s the mean of abs(τ) over the entries of a tensor that have changed.

    One bit an entry. Entries that have not changed (rows of tokens that do not occur, frozen tensors) stay the base's:
    where a chunk has some, a second plane names them. Tensors that are no floats lose nothing. EMR-Merging (arXiv
    2405.17461) shares the sizes among experts; those would change what an earlier state decodes to.
    """

    name: ClassVar[str] = "signs"
    source: ClassVar[str] = "Liu et al. 2024 (arXiv 2402.10193)"
    exact: ClassVar[bool] = False

    def prepare(self, expert: TensorSource, base: TensorSource) -> Numbers:
        numbers: dict[str, tuple[float, ...]] = {}
        for name in (name for name, entry in expert.entries.items() if entry.dtype in FLOATS):
            count, size = 0, 0.0
            for change in changes.of(expert, base, [name]):
                count, size = count + int(np.count_nonzero(change)), size + np.abs(change).sum(dtype=np.float64)
            numbers[name] = (changes.rounded(size / count) if count else 0.0,)
        return numbers

    def encode(self, values: NDArray[Any], chunk: Chunk) -> bytes:
        if chunk.dtype not in FLOATS:
            return planes.pack(values, chunk.base, chunk.dtype)
        change = changes.of_chunk(values, chunk.base, chunk.dtype)
        changed = change != 0
        negative = np.packbits(change[changed] < 0).tobytes()
        if changed.all():
            return _NONE_ZERO + negative
        zeros = planes.compress(np.packbits(changed))
        return _SOME_ZERO + len(zeros).to_bytes(4, "little") + zeros + negative

    def decode(self, data: bytes, chunk: Chunk) -> NDArray[Any]:
        if chunk.dtype not in FLOATS:
            return planes.unpack(data, chunk.base, chunk.dtype, np.dtype(stored_as(chunk.dtype)), chunk.count)
        if len(chunk.numbers) != 1:
            raise DamagedChunkError("without the scale of its signs")
        at, rest = np.arange(chunk.count), data[1:]
        if data[:1] == _SOME_ZERO:
            length = int.from_bytes(data[1:5], "little")
            plane = planes.decompress(data[5 : 5 + length], -(-chunk.count // 8))
            at, rest = (
                np.flatnonzero(np.unpackbits(np.frombuffer(plane, np.uint8), count=chunk.count)),
                data[5 + length :],
            )
        elif data[:1] != _NONE_ZERO:
            raise DamagedChunkError("an unknown form")
        if len(rest) != -(-len(at) // 8):
            raise DamagedChunkError("a plane of another length")
        negative = np.unpackbits(np.frombuffer(rest, np.uint8), count=len(at)).astype(np.bool_)
        scale = np.float64(chunk.numbers[0])
        return changes.added(chunk, at, np.where(negative, -scale, scale))
