"""The pools that a batch is drawn from: prepared data sets, seen as one row of samples each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Samples(Protocol):
    """What a pool needs of a data set; `tasks.datasets.Dataset` has it."""

    @property
    def images(self) -> np.ndarray:
        """uint8, shape (N, H, W, 3); only rows that are indexed need be in memory."""

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def captions(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...


class Pool:
    """Data sets end to end: row i of the pool is a row of one of them. A pool may be empty."""

    def __init__(self, name: str, parts: Sequence[Samples] = ()):
        self.name = name
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def captions(self) -> list[str]:
        """Captions of all rows."""
        return [caption for part in self._parts for caption in part.captions]

    def images(self, rows: np.ndarray) -> np.ndarray:
        """uint8 images of some rows, in their order, shape (len(rows), H, W, 3)."""
        parts, local = self._locate(rows)
        found = np.empty((len(rows), *self._parts[0].images.shape[1:]), dtype=np.uint8)
        for part in np.unique(parts):
            here = parts == part
            found[here] = self._parts[part].images[local[here]]
        return found

    def ids(self, rows: np.ndarray) -> list[str]:
        """Sample ids of some rows, each with the name of the pool before it."""
        parts, local = self._locate(rows)
        return [f"{self.name}/{self._parts[p].ids[i]}" for p, i in zip(parts, local, strict=True)]

    def _locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        return parts, rows - self._starts[parts]
