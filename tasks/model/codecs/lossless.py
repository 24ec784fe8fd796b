"""The difference to the base, without loss."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.model import planes
from tasks.model.codec import Chunk, Codec
from tasks.model.dtypes import stored_as


class Lossless(Codec):
    """Every bit comes back: floats as ordered integers, their difference to the base, bytes by significance, zstd."""

    name: ClassVar[str] = "lossless"
    source: ClassVar[str] = ""
    exact: ClassVar[bool] = True

    def encode(self, values: NDArray[Any], chunk: Chunk) -> bytes:
        return planes.pack(values, chunk.base, chunk.dtype)

    def decode(self, data: bytes, chunk: Chunk) -> NDArray[Any]:
        return planes.unpack(data, chunk.base, chunk.dtype, np.dtype(stored_as(chunk.dtype)), chunk.count)
