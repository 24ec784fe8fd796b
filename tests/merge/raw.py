"""Safetensors files with any header, written byte by byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.model.dtypes import BITS

Item = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape."""


def write_header(path: Path, header: bytes, body: bytes = b"") -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)


def write_raw(path: Path, items: Sequence[Item], fill: int = 0) -> None:
    """Tensors of any dtype; floats are ones, all else bytes of ``fill``."""
    header, body = {}, b""
    for name, dtype, shape in items:
        size = int(np.prod(shape, dtype=np.int64))
        ones = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}.get(dtype)
        data = np.ones(size, ones).tobytes() if ones else bytes([fill]) * (size * BITS[dtype] // 8)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    write_header(path, json.dumps(header).encode(), body)
