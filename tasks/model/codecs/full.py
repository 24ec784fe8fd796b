"""The bytes as they are."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.model.codec import Chunk, Codec, DamagedChunkError
from tasks.model.dtypes import stored_as


class FullCodec(Codec):
    """The safetensors file that training writes, as it is; the default."""

    name: ClassVar[str] = "full"
    source: ClassVar[str] = ""
    codes: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    def encode(self, values: NDArray[Any], chunk: Chunk) -> bytes:  # noqa: ARG002
        return values.tobytes()

    def decode(self, data: bytes, chunk: Chunk) -> NDArray[Any]:
        dtype = np.dtype(stored_as(chunk.dtype))
        if len(data) != chunk.count * dtype.itemsize:
            raise DamagedChunkError("a chunk of another size")
        return np.frombuffer(data, dtype)
