"""A model that is read, written as a safetensors file: piece by piece, in other dtypes where they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.model.dtypes import decode, encode, fits, stored_as, width
from tasks.model.sinks import SHARD_BYTES, FileSink
from tasks.model.sources import TensorEntry, TensorSource, raw_bytes
from tasks.progress import Progress, silent
from tasks.storage import places

_AT_ONCE = 1 << 22
"""Entries that are copied at a time."""


def write(source: TensorSource, entries: Mapping[str, TensorEntry], path: Path, progress: Progress = silent) -> None:
    """Write the tensors that ``entries`` names, in its dtypes; all or nothing, in flat memory.

    Raises:
        UserError: a value overflows the dtype that is asked for.
    """
    total, done = sum(e.size for e in entries.values()), 0
    sink = FileSink(path, entries, SHARD_BYTES)
    try:
        for name, entry in entries.items():
            stored = source.entries[name]
            for start in range(0, entry.size, _AT_ONCE):
                stop = min(entry.size, start + _AT_ONCE)
                size = width(stored.dtype)
                raw = raw_bytes(source, name, start * size, (stop - start) * size)
                sink.write(name, start * width(entry.dtype), _recoded(raw, stored.dtype, entry.dtype, name))
                done += stop - start
                progress("writing the weights", done, total)
        sink.finish()
    finally:
        sink.abandon()  # what is unfinished, and the private folders


def require_new(folder: Path) -> None:
    """Refuse a folder for a model that has anything in it.

    Raises:
        UserError: it has, is no folder, or nothing can be written there.
    """
    places.output(folder, folder=True)
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{folder}: is a link to nothing; choose a new folder, or remove the link")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: exists; choose a new folder, so that no file of another model stays in it")


def place(made: Path, folder: Path) -> None:
    """Give a finished folder its name, as `require_new` allowed it."""
    if folder.exists():
        folder.rmdir()  # an empty one
    made.rename(folder)


def _recoded(raw: NDArray[np.uint8], dtype: str, wanted: str, name: str) -> NDArray[Any]:
    if dtype == wanted:
        return raw
    values = decode(raw.view(stored_as(dtype)), dtype, np.float64 if dtype == "F64" else np.float32)
    encoded = encode(values, wanted)
    if np.isfinite(values).all() and not fits(encoded, wanted):
        raise UserError(f"the tensor {name!r} overflows {wanted}; choose bfloat16 or float32")
    return encoded
