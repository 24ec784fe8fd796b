"""Retrieval across models: queries that one model has embedded, in a gallery that another has.

An index of images is a gallery. It keeps working with a newer model if the newer model's queries find in it what the
queries of the model that made it find.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tasks.evaluate import retrieval
from tasks.evaluate.towers import Precision, feature_batches, text_features
from tasks.model.datasets import Dataset, digest
from tasks.model.models import Preprocess, Tokenizer

if TYPE_CHECKING:
    from tasks.model.models import Clip

KS = (1, 5)
BLOCK = 256
"""Queries that are compared with the gallery at a time."""
Shares = dict[str, float]
"""k → recall@k in percent."""


@dataclass(frozen=True)
class Crossing:
    """A test set as queries and gallery.

    With classes, each image is a query and all others are its gallery; right are those of its class. Without, captions
    are the queries and images the gallery, as in `tasks.evaluate.retrieval`. Images that are equal count once.
    """

    data: Dataset
    images: np.ndarray
    """The samples whose images are the gallery, int64, shape (I,)."""
    labels: torch.Tensor | None
    """Class of each, int64, shape (I,)."""
    pairs: retrieval.Pairs | None
    """Where there are no classes."""

    @property
    def queries(self) -> int:
        """How many queries have a right answer."""
        if self.pairs:
            return len(self.pairs.tokens)
        assert self.labels is not None
        return int((torch.bincount(self.labels)[self.labels] > 1).sum())

    def gallery(
        self, model: Clip, preprocess: Preprocess, batch_size: int, on_done: Callable[[int], None], precision: Precision
    ) -> torch.Tensor:
        """Features of the images, of unit length: float32, shape (I, D)."""
        parts, done = [], 0
        for part in feature_batches(model, self.data.images, self.images, preprocess, batch_size, precision):
            parts.append(part.cpu())
            done += len(part)
            on_done(done)
        return torch.cat(parts)

    def embedded_queries(
        self, model: Clip, images: torch.Tensor, batch_size: int, precision: Precision
    ) -> torch.Tensor:
        """Features of the queries, float32 (Q, D); ``images`` are the model's own `gallery`."""
        if self.pairs is None:
            return images
        return text_features(model, self.pairs.tokens, batch_size, precision=precision).cpu()

    def recall(self, queries: torch.Tensor, gallery: torch.Tensor) -> Shares:
        """recall@k: the share of queries with a right image among the k most similar ones, in percent."""
        if self.pairs:
            _, before = retrieval.before_right(gallery, queries, self.pairs.right)
        else:
            assert self.labels is not None
            before = before_class(queries, gallery, self.labels)
        return {str(k): 100 * float((before < k).mean()) for k in KS}


def crossing(name: str, data: Dataset, tokenize: Tokenizer) -> Crossing:
    """The test set ``name`` as queries and gallery.

    Raises:
        UserError: it has no classes, and fewer than two images or captions that differ.
    """
    if (data.labels < 0).all():
        pairs = retrieval.pairs(name, data, tokenize)
        return Crossing(data, pairs.images, None, pairs)
    first: dict[bytes, int] = {}
    for row, image in enumerate(data.images):
        if data.labels[row] >= 0:
            first.setdefault(digest(image), row)
    rows = np.array(list(first.values()), dtype=np.int64)
    return Crossing(data, rows, torch.from_numpy(data.labels[rows].astype(np.int64)), None)


@torch.inference_mode()
def before_class(queries: torch.Tensor, gallery: torch.Tensor, labels: torch.Tensor, block: int = BLOCK) -> np.ndarray:
    """How many wrong images come before the most similar one of the query's class, itself left out: int64, shape (Q,).

    Row i of both, float32 (I, D), is the same image, of class ``labels[i]``. Queries whose class has no other image
    take no part. Cosines are exact (`retrieval.GRID`); a wrong image that is exactly as similar comes before.
    """
    counts, exact = [], retrieval.exact(gallery)
    for start in range(0, len(queries), block):
        rows = torch.arange(start, min(start + block, len(queries)))
        similar = retrieval.exact(queries[rows]) @ exact.T
        own = labels[rows, None] == labels
        own[torch.arange(len(rows)), rows] = False
        best = similar.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        wrong = labels[rows, None] != labels
        before = (~(similar < best) & wrong).sum(dim=1)
        counts.append(before[own.any(dim=1)])
    return torch.cat(counts).numpy()
