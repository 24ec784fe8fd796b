"""The training loop: batches in, weights changed in place, a curve out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from tasks import randomness
from tasks.errors import UserError
from tasks.model.models import Preprocess, normalize
from tasks.progress import Progress, silent
from tasks.train import augment, nonfinite
from tasks.train.features import features
from tasks.train.loss import contrastive_loss, sigmoid_loss
from tasks.train.optimizer import adamw
from tasks.train.recipe import Recipe
from tasks.train.regularizer import Pull
from tasks.train.saved import Saved
from tasks.train.world import ALONE, World

if TYPE_CHECKING:
    from tasks.model.models import Clip

MAX_LOG_SCALE = math.log(100)
"""Largest log-temperature, as in CLIP."""
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LEAST_SCALE = 1e-3
"""Below this loss scale, float16 overflows at every scale."""


@dataclass(frozen=True)
class Batch:
    """The part of a training step that one process computes, on the CPU and in the stored precision."""

    images: np.ndarray
    """uint8, shape (n, H, W, 3): this process's part."""
    crops: np.ndarray
    """Boxes for `augment.crop`, float32, shape (n, 4)."""
    tokens: torch.Tensor
    """int64, shape (n, L)."""
    captions: torch.Tensor
    """int64, shape (N,), of the whole batch: equal where two captions read the same."""
    ids: Callable[[], list[str]]
    """Names of the whole batch's samples, called only for an error message."""


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


@dataclass
class Training:
    """Everything that changes during training; `Saved` stores it, so that a killed run can resume."""

    model: Clip
    recipe: Recipe
    preprocess: Preprocess
    seed: int
    """The seed of dropout."""
    world: World = ALONE
    pull: Pull | None = None

    done: int = 0
    """Finished training steps."""
    skipped: int = 0
    """Steps among them that were skipped for a loss that is not finite."""
    decay: float = 1.0
    """Product of (1 - lr · weight decay) over the optimizer's steps."""
    curve: list[Point] = field(default_factory=list)

    def __post_init__(self) -> None:
        recipe = self.recipe
        if self.world.size > 1 or recipe.accumulate > 1 or recipe.on_nonfinite == "skip":
            _refuse_batch_norm(self.model)
        if recipe.loss == "siglip" and self.model.logit_bias is None:
            raise UserError("train.loss: siglip needs a model with a logit bias, and this one has none; use clip")
        if recipe.checkpointing:
            self.model.set_grad_checkpointing(True)
        self.model.train()
        self.device = self.model.logit_scale.device
        self.optimizer = adamw(self.model, recipe.weight_decay, recipe.betas, recipe.eps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "float16")
        self.schedule = recipe.schedule
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    def step(self, batch: Batch) -> bool:
        """One training step; False where loss or gradient is not finite, with model and optimizer unchanged."""
        lr = self.schedule(self.done)
        loss = self.gradients(batch)
        if self.pull:
            loss += self.pull.penalty()
            self.pull.before_step()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip).item()
        finite = math.isfinite(loss) and math.isfinite(norm)
        overflow = self.scaler.is_enabled() and math.isfinite(loss) and self.scaler.get_scale() > LEAST_SCALE
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.scaler.step(self.optimizer)
            self.decay *= 1 - lr * self.recipe.weight_decay
            with torch.no_grad():
                self.model.logit_scale.clamp_(0, MAX_LOG_SCALE)
            if self.pull:
                self.pull.after_step()
        self.scaler.update()
        self.curve.append(Point(self.done, loss, lr, norm, float(self.model.logit_scale.detach().exp())))
        return finite or overflow

    def gradients(self, batch: Batch) -> float:
        """Leave the gradient of the whole batch's loss in the parameters, unscaled; returns the loss.

        The loss is computed over the features alone, cut off from the towers: its gradient there is what each part of
        the batch then takes back through the towers. So neither parts nor processes change what is computed.
        """
        self.optimizer.zero_grad()
        images = normalize(batch.images, self.preprocess, self.device).to(self.model.logit_scale.dtype)
        images = augment.crop(images, batch.crops)
        tokens = batch.tokens.to(self.device)
        parts = [slice(p[0], p[-1] + 1) for p in np.array_split(np.arange(len(images)), self.recipe.accumulate)]
        whole = len(parts) == 1
        with torch.set_grad_enabled(whole):
            computed = [self._features(images, tokens, part) for part in parts]
        own = [torch.cat([f[tower].detach() for f in computed]) for tower in (0, 1)]
        everyone = [self.world.gather(f).requires_grad_() for f in own]
        loss = self._loss(everyone[0], everyone[1], batch.captions.to(self.device))
        self.scaler.scale(loss).backward()
        if self.world.rank:  # temperature and bias see the whole batch in every process; one counts
            self.optimizer.zero_grad(set_to_none=False)
        mine = self.world.part(len(batch.captions))
        for i, part in enumerate(parts):
            outputs = computed[i] if whole else self._features(images, tokens, part)
            for output, features_ in zip(outputs, everyone, strict=True):
                assert features_.grad is not None
                if output.requires_grad:  # else its tower is locked
                    output.backward(features_.grad[mine][part])
        self.world.sum_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        return loss.item()

    def _features(self, images: torch.Tensor, tokens: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(randomness.derive(self.seed, self.done, self.world.rank, part.start) % 2**63)
        precision = TYPES[self.recipe.precision]
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            image_features, text_features = features(self.model, images[part], tokens[part])
        exact = self.model.logit_scale.dtype
        return image_features.to(exact), text_features.to(exact)

    def _loss(self, images: torch.Tensor, texts: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        scale, bias = self.model.logit_scale.exp(), self.model.logit_bias
        if self.recipe.loss == "siglip" and bias is not None:
            return sigmoid_loss(images, texts, scale, bias, captions)
        return contrastive_loss(images, texts, scale, captions)


def fit(
    training: Training,
    batch: Callable[[int], Batch],
    saved: Saved,
    every: float,
    progress: Progress = silent,
) -> None:
    """Train to the end of the recipe, from the checkpoint in ``saved``; ``batch(i)`` must depend only on i.

    The training is saved about every ``every`` seconds.

    Raises:
        UserError: the loss or the gradient is not finite, more often than the recipe allows; the message names the
            training step, its samples and the last good checkpoint.
    """
    recipe, world = training.recipe, training.world
    saved.load(training)
    first, started, last_saved = training.done, time.monotonic(), time.monotonic()
    for drawn in _ahead(batch, first, recipe.steps):
        if not training.step(drawn):
            training.skipped += 1
            if recipe.on_nonfinite == "stop" or training.skipped > recipe.skip_at_most:
                point = training.curve.pop()
                training.skipped -= 1
                raise nonfinite.stopped(training, point, drawn, saved)
        training.done += 1
        now = time.monotonic()
        if world.rank == 0 and now - last_saved >= every and training.done < recipe.steps:
            saved.save(training)
            last_saved = time.monotonic()
        rate = (training.done - first) * recipe.batch_size / (now - started)
        loss = training.curve[-1].loss
        progress("train", training.done, recipe.steps, f"loss {loss:.3f}, {rate:.0f} samples/s")


def _ahead(batch: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """Batches ``start`` to ``stop``, each read during the computation of the one before."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(batch, start) if start < stop else None
        for index in range(start, stop):
            assert coming is not None
            ready = coming.result()
            coming = reader.submit(batch, index + 1) if index + 1 < stop else None
            yield ready


def _refuse_batch_norm(model: torch.nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"train: the model normalizes over the batch ({name}), so its result depends on "
                "all of a batch; train it with accumulate: 1, processes: 1 and on_nonfinite: stop"
            )
