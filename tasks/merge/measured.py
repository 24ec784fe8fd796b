"""What experts' own data says about their weights, read from statistics files (`tasks.model.statistics`) in pieces.

A technique that declares ``statistics`` gets a `Measured` for each expert. Everything that the headers show is checked
before any work; values are checked as they are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from tasks.errors import UserError
from tasks.merge.device import HOST, Device
from tasks.merge.layout import Tensor
from tasks.merge.reading import NotFiniteError, read
from tasks.merge.types import Array, GramForm
from tasks.model.sources import DictSource, FileSource, TensorSource
from tasks.model.statistics import Facts, facts_of

_AT_ONCE = 1 << 20
_TILE = 256
"""Rows and columns of a Gram matrix that are checked at a time."""
ROUNDING = {"F64": 1e-9, "F32": 1e-3, "F16": 2e-2, "BF16": 1e-1}
"""How far from symmetric a Gram matrix may be, relative to the diagonal, by its dtype."""
_ROWS = ("proj", "text_projection")
"""Parameters that open_clip stores as (in, out), by the last part of their names."""


@dataclass(frozen=True)
class Statistics:
    """Statistics in memory, in place of a file: arrays by the names that the file has, and its metadata."""

    arrays: Mapping[str, Any]
    samples: int
    estimator: str
    pool: Any


@dataclass(frozen=True)
class Gram:
    """The second moments of a linear map's inputs, a mean over samples."""

    values: Array
    """(in, in), or (in,) where it is the diagonal alone."""
    form: GramForm


class Measured:
    """The statistics of one expert."""

    def __init__(self, source: TensorSource, facts: Facts) -> None:
        self.source, self.facts, self.label = source, facts, source.label

    def entry(self, kind: str, tensor: Tensor) -> str | None:
        """The name of a statistic of a tensor in the file, also where that has another of a tied tensor's names."""
        names = (f"{kind}/{name}" for name in (tensor.name, *tensor.tied))
        return next((name for name in names if name in self.source.entries), None)

    def fisher(self, tensor: Tensor, start: int, stop: int, device: Device) -> Array:
        """Entries [start, stop) of a tensor's diagonal Fisher; zeros where the file has none (it has not moved).

        Raises:
            UserError: it holds NaN, infinity or a negative number.
        """
        name = self.entry("fisher", tensor)
        if name is None:
            return np.zeros(stop - start, tensor.precision, like=device.like)
        return self._fisher(name, start, stop, device, tensor.precision)

    def fisher_norm(self, tensors: Sequence[Tensor], floor: float) -> float:
        """‖F‖₂ over tensors, entries below ``floor`` raised to it; in float64.

        Raises:
            UserError: as `fisher`.
        """
        total = 0.0
        for tensor in tensors:
            name = self.entry("fisher", tensor)
            if name is None:
                continue
            for start in range(0, tensor.size, _AT_ONCE):
                stop = min(tensor.size, start + _AT_ONCE)
                values = self._fisher(name, start, stop, HOST, np.float64)
                np.maximum(values, floor, out=values)
                total += float(values @ values)
        return math.sqrt(total)

    def _fisher(self, name: str, start: int, stop: int, device: Device, precision: type[np.floating[Any]]) -> Array:
        values = self._read(name, start, stop, device, precision)
        if (values < 0).any():
            raise UserError(f"{self.label}: {name!r} holds negative numbers; a Fisher is a mean of squares")
        return values

    def gram_form(self, tensor: Tensor) -> GramForm | None:
        """The form of a weight's Gram matrix; None where the file has none.

        Raises:
            UserError: its shape is not that of the weight's inputs.
        """
        name = self.entry("gram", tensor)
        if name is None:
            return None
        shape, weight = self.source.entries[name].shape, tensor.shape
        columns = math.prod(weight[1:]) if len(weight) > 1 else -1
        square = len(shape) in (1, 2) and len(set(shape)) == 1
        by_columns = square and shape[0] == columns
        by_rows = square and len(weight) == 2 and shape[0] == weight[0]
        if not by_columns and not by_rows:
            wanted = f"{columns} × {columns}" if columns > 0 else "none: it is no linear map's weight"
            raise UserError(
                f"{self.label}: {name!r} has shape {list(shape)}, and the tensor {tensor.name!r} of shape "
                f"{list(weight)} asks for {wanted}; the statistics are of another model"
            )
        stored_as_rows = tensor.name.rpartition(".")[2] in _ROWS or tensor.name in self.facts.rows
        rows = by_rows and (stored_as_rows or not by_columns)
        return GramForm(full=len(shape) == 2, rows=rows, inputs=shape[0])

    def gram(self, tensor: Tensor, device: Device) -> Gram | None:
        """The Gram matrix of a weight: Σ x xᵀ over the number of samples; None where the file has none.

        Raises:
            UserError: it holds NaN or infinity, is not symmetric, or is no sum of squares.
        """
        form, name = self.gram_form(tensor), self.entry("gram", tensor)
        if form is None or name is None:
            return None
        entry = self.source.entries[name]
        values = self._read(name, 0, entry.size, device, tensor.precision).reshape(entry.shape)
        diagonal = values if not form.full else np.diagonal(values)
        if (diagonal < 0).any():
            raise UserError(f"{self.label}: {name!r} has a negative diagonal; a Gram matrix is a sum of x xᵀ")
        if form.full:
            self._require_squares(name, values, ROUNDING[entry.dtype])
        values /= self.facts.samples
        return Gram(values, form)

    def _require_squares(self, name: str, values: Array, slack: float) -> None:
        """Refuse a matrix that is not symmetric, or has an entry beyond what its diagonal allows.

        By tiles with their mirror images, so that each entry is read once and from the cache.
        """
        length = np.sqrt(np.diagonal(values))
        tiles = [slice(start, start + _TILE) for start in range(0, len(values), _TILE)]
        for place, rows in enumerate(tiles):
            for columns in tiles[place:]:
                upper, lower = values[rows, columns], values[columns, rows].T
                bound = length[rows, None] * length[None, columns]
                if (np.abs(upper - lower) > slack * bound).any():
                    raise UserError(f"{self.label}: {name!r} is not symmetric; a Gram matrix is a sum of x xᵀ")
                bound *= 1 + slack
                if (np.abs(upper) > bound).any() or (np.abs(lower) > bound).any():
                    raise UserError(
                        f"{self.label}: {name!r} is no Gram matrix: an entry is larger than its diagonal allows"
                    )

    def _read(self, name: str, start: int, stop: int, device: Device, precision: type[np.floating[Any]]) -> Array:
        try:
            return read(self.source, name, start, stop, device, precision)
        except NotFiniteError:
            raise UserError(f"{self.label}: {name!r} holds NaN or infinity; measure the model again") from None


def open_statistics(given: Sequence[Path | str | Statistics], stack: ExitStack) -> list[Measured]:
    """Statistics to read, one an expert; ``stack`` closes them.

    Raises:
        UserError: a file cannot be read, or is not a statistics file; names file and key.
    """
    opened: list[Measured] = []
    for place, one in enumerate(given, 1):
        if isinstance(one, Statistics):
            label = f"statistics {place}"
            metadata = Facts(one.samples, one.estimator, one.pool).as_metadata()
            opened.append(Measured(DictSource(one.arrays, label), facts_of(metadata, label)))
            continue
        source = stack.enter_context(FileSource(Path(one)))
        if Path(one).suffix != ".safetensors":
            raise UserError(f"{one}: statistics are one safetensors file, as `chronomerge measure` writes it")
        with safe_open(one, framework="numpy") as file:
            metadata = file.metadata()
        opened.append(Measured(source, facts_of(metadata, str(one))))
    return opened
