"""Moments and counts of data, such as BatchNorm's: no weights, so that no technique may add or scale them.

A merged layer of BatchNorm gets the mean and the variance of the mixture of the models' data, in which a model's share
is its weight: Σ w m, and Σ w (v + m²) − (Σ w m)². Taken in one model at a time, no variance can become negative:
v ← (1−r) v + r (v_k + (1−r) (m_k − m)²), where r is the new model's share. All others (the cluster sizes and sums of a
vector quantiser) are the mean Σ w x, so that no count becomes negative.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tasks.errors import UserError
from tasks.merge.reading import read
from tasks.merge.types import Float64
from tasks.model.dtypes import FLOATS, encode, fits, stored_as
from tasks.model.sinks import Sink
from tasks.model.sources import TensorEntry, TensorSource

TOTAL = "total weight"
"""What a stored state calls the sum of the weights; no tensor has a name with a space."""
_MEAN_OF = {
    "running_var": "running_mean", "moving_variance": "moving_mean", "moving_var": "moving_mean", "var": "mean",
}  # fmt: skip
"""The last part of a variance's name → that of its mean: PyTorch's, TensorFlow's and Flax's."""
_LAST = re.compile(r"[^./]+$")


@dataclass
class RunningStatistics:
    """Statistics of the models so far: by tensor name, in float64, and the sum of their weights."""

    values: dict[str, Float64] = field(default_factory=dict)
    total: float = 0.0

    def add(self, names: Sequence[str], source: TensorSource, weight: float) -> None:
        """Take one model in.

        Raises:
            UserError: a value is not finite, or a variance is negative.
        """
        self.total += weight
        share = weight / self.total if weight else 0.0
        before = dict(self.values)
        for name in names:
            new = _read(source, name)
            old = before.get(name, new)
            moved = new if share == 1 else old + share * (new - old)
            last = _LAST.search(name)
            if last and last[0] in _MEAN_OF:
                if (new < 0).any():
                    raise UserError(f"{source.label}: {name!r} holds a negative variance; the model cannot be run")
                mean = name[: last.start()] + _MEAN_OF[last[0]]
                if mean in before:
                    moved += share * (1 - share) * np.square(_read(source, mean) - before[mean])
                moved = np.maximum(moved, 0)
            self.values[name] = moved

    def write(self, entries: Mapping[str, TensorEntry], sink: Sink) -> None:
        """Put the merged statistics into the output, counts rounded to whole numbers.

        Raises:
            UserError: one does not fit the output's dtype.
        """
        for name, value in self.values.items():
            dtype = entries[name].dtype
            if dtype in FLOATS:
                encoded = encode(value.reshape(-1), dtype)
                if not fits(encoded, dtype):
                    raise UserError(f"the merged tensor {name!r} overflows {dtype}; choose --dtype float32")
            else:
                encoded = np.rint(value).astype(stored_as(dtype))
            sink.write(name, 0, encoded)


def shares(weights: Sequence[float]) -> list[float]:
    """Weights that a mixture can have: none is negative; all are 1 where none is positive."""
    positive = [max(0.0, weight) for weight in weights]
    return positive if any(positive) else [1.0] * len(positive)


def note(names: Sequence[str]) -> str:
    """What the user should know about merged statistics."""
    layers = {_LAST.sub("", name) for name in names}
    return (
        f"the running statistics of {len(layers)} layer{'s' * (len(layers) != 1)} were averaged by the "
        "models' weights (variance: of the mixture); run data through the merged model in training mode to recalibrate "
        "them"
    )


def _read(source: TensorSource, name: str) -> Float64:
    entry = source.entries[name]
    if entry.dtype in FLOATS:
        flat: Float64 = read(source, name, 0, entry.size, precision=np.float64)
    else:
        raw = np.empty(entry.size, stored_as(entry.dtype))
        source.read_into(name, 0, raw)
        flat = raw.astype(np.float64)
    return flat
