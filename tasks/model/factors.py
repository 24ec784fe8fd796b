"""Low-rank changes of weights as what training left of them, and the weights that they predict.

What training itself computed of the factors may differ in the last bits: it sums in an order that its library chooses.
So these predictions are no weights; a codec stores what they lack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.model.sources import TensorEntry, TensorSource

Array = NDArray[np.float32]
_ROWS = 64
"""Rows that are computed at a time: they stay in the processor's cache."""


@dataclass(frozen=True)
class Factors:
    """W ≈ gain · (W_0 + scale · diag(rows) · left · diag(middle) · right), of shape (out, in)."""

    left: Array
    """Shape (out, rank)."""
    right: Array
    """Shape (rank, in)."""
    scale: float = 1.0
    rows: Array | None = None
    """Shape (out,)."""
    middle: Array | None = None
    """Shape (rank,)."""
    gain: Array | None = None
    """Shape (out,)."""

    @property
    def arrays(self) -> dict[str, Array]:
        """Those that there are, by name."""
        named = {name: getattr(self, name) for name in ("left", "right", "rows", "middle", "gain")}
        return {name: array for name, array in named.items() if array is not None}

    def fit(self, shape: tuple[int, ...]) -> bool:
        """Whether they change a weight of this shape."""
        if self.left.ndim != 2 or self.right.ndim != 2:
            return False
        out, rank = self.left.shape
        wanted = {"left": (out, rank), "right": (rank, self.right.shape[1]), "rows": (out,), "middle": (rank,)}
        wanted["gain"] = (out,)
        return (out, self.right.shape[1]) == shape and all(a.shape == wanted[n] for n, a in self.arrays.items())

    def predict(self, base: Array, first: int) -> Array:
        """Rows of the weight, from those of the base of shape (n, in); ``first`` is the first one's number.

        Sums run over the rank in its order, in float64, with operations that every machine rounds alike.
        """
        chosen = slice(first, first + len(base))
        left = self.left[chosen].astype(np.float64)
        right = self.right.astype(np.float64)
        if self.rows is not None:
            left *= self.rows[chosen, None]
        if self.middle is not None:
            right *= self.middle[:, None]
        change = np.zeros(base.shape)
        for k in range(len(right)):
            change += left[:, k, None] * right[k]
        weight: Array = (base + self.scale * change).astype(np.float32)
        return weight if self.gain is None else weight * self.gain[chosen, None]


class Predicted:
    """A base with the weights that factors predict in place of those that they change; a `TensorSource`."""

    def __init__(self, base: TensorSource, factors: Mapping[str, Factors]) -> None:
        self.label, self.notes = base.label, base.notes
        self.entries: Mapping[str, TensorEntry] = base.entries
        self._base, self._factors = base, factors

    def read_into(self, name: str, start: int, buffer: NDArray[Any]) -> None:
        if name not in self._factors:
            self._base.read_into(name, start, buffer)
            return
        out = buffer.reshape(-1).view(np.uint8)
        width = self.entries[name].shape[1]
        row, skipped = divmod(start, 4 * width)
        done = 0
        while done < len(out):
            base = np.empty((min(_ROWS, self.entries[name].shape[0] - row), width), np.float32)
            self._base.read_into(name, 4 * width * row, base)
            plain = (
                self._factors[name].predict(base, row).reshape(-1).view(np.uint8)[skipped : skipped + len(out) - done]
            )
            out[done : done + len(plain)] = plain
            done, row, skipped = done + len(plain), row + len(base), 0
