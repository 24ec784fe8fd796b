"""The training loop: batches in, weights changed in place, a curve out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tasks.errors import UserError
from tasks.models import Preprocess, normalize
from tasks.progress import Progress, silent
from tasks.train import augment
from tasks.train.features import features
from tasks.train.loss import contrastive_loss
from tasks.train.optimizer import adamw
from tasks.train.schedule import learning_rate

if TYPE_CHECKING:
    from tasks.models import Clip

MAX_LOG_SCALE = math.log(100)
"""Largest log-temperature, as in CLIP."""


@dataclass(frozen=True)
class Recipe:
    """How one expert is trained."""

    steps: int
    batch_size: int
    lr: float
    """Peak of the schedule."""
    weight_decay: float
    warmup: float
    """Fraction of the steps."""
    clip: float
    """Largest norm of the gradient."""


@dataclass(frozen=True)
class Batch:
    """What one training step sees, still on the CPU and undecided about device or precision."""

    images: np.ndarray
    """uint8, shape (N, H, W, 3)."""
    crops: np.ndarray
    """Boxes for `augment.crop`, float32, shape (N, 4)."""
    tokens: torch.Tensor
    """int64, shape (N, L)."""
    captions: torch.Tensor
    """int64, shape (N,): equal where two captions read the same."""
    ids: Callable[[], list[str]]
    """Names of the samples, asked for only when something is wrong with them."""


@dataclass(frozen=True)
class Point:
    """One training step on the curve."""

    step: int
    loss: float
    lr: float
    gradient_norm: float
    """Before clipping."""
    logit_scale: float
    """The factor, after the step."""


def fit(
    model: Clip,
    recipe: Recipe,
    batch: Callable[[int], Batch],
    preprocess: Preprocess,
    progress: Progress = silent,
) -> list[Point]:
    """Train ``model`` in place for ``recipe.steps`` steps; ``batch(i)`` must depend on i alone.

    Whatever changes from step to step is the model, the optimizer's state and the index: these are all that a
    resumed run needs.

    Raises:
        UserError: the loss or the gradient is not finite; names the training step and its first samples.
    """
    model.train()
    optimizer = adamw(model, recipe.weight_decay)
    curve: list[Point] = []
    started = time.monotonic()
    for index in range(recipe.steps):
        lr = learning_rate(index, recipe.steps, recipe.lr, recipe.warmup)
        drawn = batch(index)
        loss, norm = _step(model, optimizer, drawn, preprocess, lr, recipe.clip)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                f"training step {index}: loss {loss:g} and gradient norm {norm:g} are not both finite, on samples"
                f" {', '.join(drawn.ids()[:4])}, …; lower the learning rate ({recipe.lr:g}) or look at these samples"
            )
        curve.append(Point(index, loss, lr, norm, float(model.logit_scale.detach().exp())))
        rate = (index + 1) * recipe.batch_size / (time.monotonic() - started)
        progress("train", index + 1, recipe.steps, f"loss {loss:.3f}, {rate:.0f} samples/s")
    return curve


def _step(
    model: Clip,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    preprocess: Preprocess,
    lr: float,
    clip: float,
) -> tuple[float, float]:
    """One optimizer step; loss and gradient norm."""
    device = model.logit_scale.device
    images = augment.crop(normalize(batch.images, preprocess, device), batch.crops)
    image_features, text_features = features(model, images, batch.tokens.to(device))
    loss = contrastive_loss(image_features, text_features, model.logit_scale.exp(), batch.captions.to(device))
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, MAX_LOG_SCALE)
    return loss.item(), norm.item()
