"""Peak memory of training on a GPU, by torch's own counter."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tasks import randomness
from tasks.model import models
from tasks.train.loop import Batch, Training
from tasks.train.method import Method
from tasks.train.recipe import Recipe
from tasks.train.regularizer import Regularizer


def peak(folder: Path, recipe: Recipe, method: Method, regularizer: Regularizer | None) -> int:
    """Bytes allocated at most during two training steps by a recipe, on grey images and captions of full length.

    Two, because AdamW allocates its moments at the end of the first.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with torch.random.fork_rng():
        model = models.build(folder).to("cuda")
        method.start(model, functools.partial(randomness.generator, 0, "cost"))
        pull = regularizer.begin(model, None) if regularizer else None
        batch = grey_batch(recipe.batch_size, models.preprocess(folder).image_size, models.tokenizer(folder))
        training = Training(model, replace(recipe, steps=2), models.preprocess(folder), seed=0, pull=pull)
        for _ in range(2):
            training.step(batch)
    return torch.cuda.max_memory_allocated()


def grey_batch(count: int, size: int, tokenize: models.Tokenizer) -> Batch:
    """Grey images, uint8 (count, size, size, 3), and captions of full length."""
    tokens = tokenize(["word " * 1000]).expand(count, -1)
    return Batch(
        images=np.full((count, size, size, 3), 127, dtype=np.uint8),
        crops=np.tile(np.array([0.5, 0.5, 1, 1], dtype=np.float32), (count, 1)),
        tokens=tokens,
        captions=torch.arange(count),
        ids=list,
    )
