"""The pools that a batch is drawn from: prepared data sets, seen as one row of samples each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from tasks.model.datasets import Card, ImageArray
from tasks.model.jpeg import JpegImages
from tasks.train.augment import WHOLE, CropDraws


class Samples(Protocol):
    """The part of a data set that a pool uses; `tasks.model.datasets.Dataset` provides it."""

    folder: Path
    card: Card
    labels: np.ndarray
    """int32, shape (N,): index into ``card.classes``, or -1."""

    @property
    def images(self) -> ImageArray:
        """uint8, shape (N, H, W, 3); only rows that are indexed need be in memory."""

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def captions(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...


class Pool:
    """Data sets end to end: row i of the pool is a row of one of them. A pool may be empty."""

    def __init__(self, name: str, parts: Sequence[Samples] = (), keep: np.ndarray | None = None):
        """``keep`` are the rows (int64) that belong to the pool, where not all do."""
        self.name = name
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self._keep = np.arange(self._starts[-1]) if keep is None else keep

    def __len__(self) -> int:
        return len(self._keep)

    @property
    def captions(self) -> list[str]:
        """Captions of all rows."""
        captions = [caption for part in self._parts for caption in part.captions]
        return [captions[row] for row in self._keep]

    def groups(self, by: Literal["class", "arrival"]) -> np.ndarray:
        """Which group each row belongs to, int64, shape (N,): rows of one class (of equal captions, where a sample has
        no class), or of one data set.
        """
        if by == "arrival":
            return self._locate(np.arange(len(self)))[0]
        names = [
            part.card.classes[label] if label >= 0 else caption
            for part in self._parts
            for label, caption in zip(part.labels.tolist(), part.captions, strict=True)
        ]
        if not names:
            return np.empty(0, dtype=np.int64)
        return np.unique(np.array(names), return_inverse=True)[1][self._keep]

    def images(self, rows: np.ndarray) -> np.ndarray:
        """uint8 images of some rows, in their order, shape (len(rows), H, W, 3)."""
        parts, local = self._locate(rows)
        images = np.empty((len(rows), *self._parts[0].images.shape[1:]), dtype=np.uint8)
        for part in np.unique(parts):
            inside = parts == part
            images[inside] = self._parts[part].images[local[inside]]
        return images

    def views(self, rows: np.ndarray, draws: CropDraws) -> tuple[np.ndarray, np.ndarray]:
        """As `images`, at random: originals are cropped as they are decoded, from all that they show.

        Returns images and, float32 of shape (len(rows), 4), what of each is still to be cropped by `augment.crop`.
        """
        parts, local = self._locate(rows)
        images = np.empty((len(rows), *self._parts[0].images.shape[1:]), dtype=np.uint8)
        boxes = draws.squares()
        for part in np.unique(parts):
            inside, stored = parts == part, self._parts[part].images
            if isinstance(stored, JpegImages) and stored.how.size == "original":
                crops = draws[inside].pixels(stored.sizes[local[inside]])
                images[inside], boxes[inside] = stored.cropped(local[inside], crops), WHOLE
            else:
                images[inside] = stored[local[inside]]
        return images, boxes

    def ids(self, rows: np.ndarray) -> list[str]:
        """Sample ids of some rows, each with the name of the pool before it."""
        parts, local = self._locate(rows)
        return [f"{self.name}/{self._parts[p].ids[i]}" for p, i in zip(parts, local, strict=True)]

    def _locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = self._keep[rows]
        parts = np.searchsorted(self._starts, own, side="right") - 1
        return parts, own - self._starts[parts]
