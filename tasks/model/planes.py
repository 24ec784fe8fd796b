"""Lossless coding of one array against another: ordered integers, their difference, byte planes, zstd.

Neighbours among floats are neighbours among integers once negative floats are turned round; a small change of a weight
is then a small integer. Its bytes are sorted by significance, so that zstd sees planes of zeros and planes of noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from tasks.model.codec import DamagedChunkError
from tasks.model.dtypes import FLOATS

_LEVEL = 1
"""Higher ones are slower, and no smaller: what remains is noise."""


def pack(values: NDArray[Any], base: NDArray[Any] | None, dtype: str) -> bytes:
    """Code a flat array of stored entries against the base's; without a base, against zeros."""
    difference = _ordered(values, dtype)
    if base is not None:
        difference = difference - _ordered(base, dtype)
    return compress(_planes(_zigzag(difference)))


def unpack(data: bytes, base: NDArray[Any] | None, dtype: str, like: np.dtype[Any], count: int) -> NDArray[Any]:
    """The inverse of `pack`, as ``count`` entries of the NumPy dtype ``like``.

    Raises:
        DamagedChunkError: these are not the bytes of so many entries.
    """
    plain = decompress(data, count * like.itemsize)
    ordered = _from_zigzag(_from_planes(plain, like.itemsize))
    if base is not None:
        ordered = ordered + _ordered(base, dtype)
    return _from_ordered(ordered, dtype).view(like)


def compress(plain: bytes | NDArray[np.uint8]) -> bytes:
    """One zstd frame, which says how large its content is."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(plain)  # type: ignore[arg-type]


def decompress(data: bytes, size: int) -> bytes:
    """The content of a frame of `compress`; nothing is allocated before the frame's own header says ``size``.

    Raises:
        DamagedChunkError: it is no such frame.
    """
    try:
        if zstandard.get_frame_parameters(data).content_size != size:
            raise DamagedChunkError("a frame of another size")
        plain = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedChunkError(str(error)) from None
    if len(plain) != size:
        raise DamagedChunkError("a frame of another size than it says")
    return plain


def _unsigned(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values).view(f"<u{values.dtype.itemsize}")


def _ordered(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Unsigned integers in the order of the values (two's complement); integers as they are."""
    bits = _unsigned(values)
    return _turned(bits) if dtype in FLOATS else bits


def _from_ordered(ordered: NDArray[Any], dtype: str) -> NDArray[Any]:
    return _turned(ordered) if dtype in FLOATS else ordered


def _turned(bits: NDArray[Any]) -> NDArray[Any]:
    """Where the highest bit is set, all others are inverted; its own inverse."""
    width = 8 * bits.dtype.itemsize
    signed = bits.view(f"<i{bits.dtype.itemsize}")
    mask = (signed >> (width - 1)).view(bits.dtype) >> bits.dtype.type(1)
    return bits ^ mask


def _zigzag(difference: NDArray[Any]) -> NDArray[Any]:
    """Small differences of either sign become small unsigned integers."""
    width = 8 * difference.dtype.itemsize
    signed = difference.view(f"<i{difference.dtype.itemsize}")
    return (difference << difference.dtype.type(1)) ^ (signed >> (width - 1)).view(difference.dtype)


def _from_zigzag(folded: NDArray[Any]) -> NDArray[Any]:
    one = folded.dtype.type(1)
    return (folded >> one) ^ (~(folded & one) + one)


def _planes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """All lowest bytes, then all next ones."""
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, values.dtype.itemsize).T).reshape(-1)


def _from_planes(plain: bytes, width: int) -> NDArray[Any]:
    planes = np.frombuffer(plain, np.uint8).reshape(width, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(f"<u{width}")
