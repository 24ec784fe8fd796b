"""The feature spaces of heads: the towers of the base, of base and first expert together, or of the deployed model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tasks.evaluate import zeroshot
from tasks.evaluate.support import Chosen
from tasks.evaluate.towers import image_features
from tasks.model import checkpoints, models
from tasks.model.datasets import Dataset
from tasks.storage.cache import sha256_of

if TYPE_CHECKING:
    from tasks.model.models import Clip


class FeatureSpace:
    """The features of one or several models of one architecture; their models are loaded when first needed.

    Features of several models stand side by side, each of unit length, and are divided by the square root of their
    number: so the whole has unit length, and a cosine is the mean of the models' cosines.
    """

    def __init__(self, folder: Path, weights: Sequence[Path], batch_size: int, named_by: Path | None = None):
        """``folder`` is the model's, ``weights`` are checkpoints of it.

        ``named_by`` is a checkpoint of another model whose space this is, where there is one.
        """
        self._folder, self._weights, self._batch_size = folder, weights, batch_size
        self._named_by = [named_by] if named_by else weights

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """sha256 of each checkpoint that names the space."""
        return tuple(map(sha256_of, self._named_by))

    @cached_property
    def _tokenize(self) -> models.Tokenizer:
        return models.tokenizer(self._folder)

    @cached_property
    def _models(self) -> list[Clip]:
        built = []
        for path in self._weights:
            model = models.build(self._folder)
            models.load_weights(model, checkpoints.load(path), path)
            built.append(model.to(models.device()).eval())
        return built

    @cached_property
    def scale(self) -> float:
        """The factor on cosines: the mean of the models' own."""
        return sum(float(model.logit_scale.detach().exp()) for model in self._models) / len(self._models)

    def images(self, data: Dataset, on_done: Callable[[int], None]) -> torch.Tensor:
        """Of all images of a data set: float32, shape (N, D)."""
        return self._images([data], np.zeros(len(data), dtype=np.int64), np.arange(len(data)), on_done)

    def chosen(self, datasets: Sequence[Dataset], chosen: Chosen, on_done: Callable[[int], None]) -> torch.Tensor:
        """Of samples that were drawn: float32, shape (M, D)."""
        return self._images(datasets, chosen.data, chosen.rows, on_done)

    def _images(
        self, datasets: Sequence[Dataset], where: np.ndarray, rows: np.ndarray, on_done: Callable[[int], None]
    ) -> torch.Tensor:
        how, parts = models.preprocess(self._folder), []
        for start in range(0, len(rows), self._batch_size):
            batch = slice(start, start + self._batch_size)
            pairs = zip(where[batch].tolist(), rows[batch].tolist(), strict=True)
            images = np.stack([datasets[d].images[row] for d, row in pairs])
            parts.append(_beside([image_features(model, images, how).cpu() for model in self._models]))
            on_done(min(start + self._batch_size, len(rows)))
        return torch.cat(parts)

    def texts(self, prompts: Sequence[Sequence[str]]) -> torch.Tensor:
        """The zero-shot classifier of classes with these prompts: float32, shape (C, D)."""
        rows: dict[int, torch.Tensor] = {}
        for count in sorted({len(own) for own in prompts}):
            at = [i for i, own in enumerate(prompts) if len(own) == count]
            tokens = self._tokenize([text for i in at for text in prompts[i]]).unflatten(0, (len(at), count))
            made = [zeroshot.classifier(model, tokens, self._batch_size).cpu() for model in self._models]
            rows |= dict(zip(at, _beside(made), strict=True))
        return torch.stack([rows[i] for i in range(len(prompts))])


def _beside(features: Sequence[torch.Tensor]) -> torch.Tensor:
    return features[0] if len(features) == 1 else torch.cat(list(features), dim=1) / math.sqrt(len(features))
