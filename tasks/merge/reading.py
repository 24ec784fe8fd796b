"""Pieces of a model as numbers to compute with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.merge.device import HOST, Device
from tasks.model.dtypes import decode, stored_as
from tasks.model.sources import TensorSource


class NotFiniteError(UserError):
    """A tensor holds NaN or infinity."""

    def __init__(self, source: TensorSource, name: str) -> None:
        super().__init__(
            f"{source.label}: tensor {name!r} holds NaN or infinity; a model that diverged cannot be merged"
        )
        self.source, self.name = source, name


def read(
    source: TensorSource,
    name: str,
    start: int,
    stop: int,
    device: Device = HOST,
    precision: type[np.floating[Any]] = np.float32,
) -> NDArray[Any]:
    """Entries [start, stop) of a flattened tensor as floats, new memory on ``device`` (within `Device.active`).

    Raises:
        NotFiniteError: one of them is NaN or infinite.
    """
    dtype = source.entries[name].dtype
    stored = np.empty(stop - start, stored_as(dtype))
    source.read_into(name, start * stored.itemsize, stored)
    x = decode(device.put(stored), dtype, precision)  # half precision crosses in half the time
    if not np.isfinite(x).all():
        raise NotFiniteError(source, name)
    return x
