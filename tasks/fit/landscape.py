"""The loss of θ_0 + Σ λ_m τ_m on samples, and its gradient by the coefficients λ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from tasks import randomness
from tasks.errors import UserError
from tasks.fit.method import Problem
from tasks.fit.samples import FitPool
from tasks.fit.scores import MODEL
from tasks.model import checkpoints, coded, models
from tasks.model.sources import FileSource

if TYPE_CHECKING:
    from tasks.model.models import Clip

TEMPERATURE = ("logit_scale", "logit_bias")
"""Tensors whose coefficients are not learned: entropy falls with the temperature, whatever is classified."""
_FORWARD = 64
"""Samples of a forward pass without gradients."""
Kind = Literal["entropy", "cross_entropy"]


class TaskVectors:
    """Task vectors by tensor, read from files as they are needed: memory does not grow with their number."""

    def __init__(self, base: Path, files: Sequence[Path], names: Sequence[str], *, elect: bool = False) -> None:
        """``elect``: of each entry of λ_m τ_m only those with the sign of their sum count (TIES)."""
        self._base, self._elect = checkpoints.load(base), elect
        for path in files:
            if not coded.is_coded(path):  # those are compared with their base as they are opened
                checkpoints.check_compatible(path, base)
        self._open = ExitStack()  # for as long as this lives
        origin = self._open.enter_context(FileSource(base))
        self._files = [coded.opened(path, origin, self._open) for path in files]
        self.names = [name for name in names if name in self._base]
        missing = [name for name in names if name not in self._base]
        if missing:
            raise UserError(f"{base}: lacks the tensor {missing[0]!r} of the model")

    def _of(self, name: str) -> list[torch.Tensor]:
        base = self._base[name].float()
        return [coded.tensor(file, name).float() - base for file in self._files]

    def sum_of(self, name: str, weights: np.ndarray) -> torch.Tensor:
        """Σ λ_m τ_m of one tensor, float64."""
        total = torch.zeros(self._base[name].shape, dtype=torch.float64)
        for tau, weight in zip(self._of(name), weights, strict=True):
            total += float(weight) * tau.double()
        return total

    def place(self, model: torch.nn.Module, coefficients: np.ndarray) -> None:
        """Give a model the weights for coefficients, float64 of shape (models, tensors)."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for index, name in enumerate(self.names):
                merged = self._base[name].double()
                for tau, weight in zip(self._kept(name, index, coefficients), coefficients[:, index], strict=True):
                    merged = merged + float(weight) * tau.double()
                parameters[name].copy_(merged)

    def inner(self, model: torch.nn.Module, coefficients: np.ndarray) -> np.ndarray:
        """⟨∂L/∂θ, τ_m⟩ by tensor, from the gradients that the model holds: float64, (models, tensors)."""
        parameters = dict(model.named_parameters())
        products = np.zeros(coefficients.shape)
        for index, name in enumerate(self.names):
            gradient = parameters[name].grad
            if gradient is not None:
                each = self._kept(name, index, coefficients)
                products[:, index] = [float((gradient.cpu().double() * tau.double()).sum()) for tau in each]
        return products

    def cosines(self, model: torch.nn.Module, vertices: np.ndarray) -> np.ndarray:
        """cos(∂L/∂θ, θ_0 + Σ v_m τ_m) by tensor, for each row v of ``vertices``, (V, models): float64, (V, tensors).

        Of whole weights, as in the authors' code; 0 where either is zero.
        """
        parameters = dict(model.named_parameters())
        values = np.zeros((len(vertices), len(self.names)))
        for index, name in enumerate(self.names):
            gradient = parameters[name].grad
            if gradient is None:
                continue
            g, base, each = gradient.cpu().double(), self._base[name].double(), self._of(name)
            for v, row in enumerate(vertices):
                weights = base + sum(float(w) * tau.double() for w, tau in zip(row, each, strict=True))
                length = float(g.norm() * weights.norm())
                values[v, index] = float((g * weights).sum()) / length if length else 0.0
        return values

    def _kept(self, name: str, index: int, coefficients: np.ndarray) -> list[torch.Tensor]:
        each = self._of(name)
        if not self._elect:
            return each
        weighted = [float(weight) * tau for tau, weight in zip(each, coefficients[:, index], strict=True)]
        total = torch.stack(weighted).sum(dim=0)
        rises = total >= 0
        return [tau * torch.where(rises, part > 0, part < 0) for tau, part in zip(each, weighted, strict=True)]


class Landscape:
    """A loss on pools: the mean over pools of the mean over their samples, at the model's own temperature.

    Images are classified among their pool's classes; where samples have captions alone, among those of their batch, and
    captions among its images.
    """

    def __init__(self, problem: Problem, vectors: TaskVectors, pools: Sequence[FitPool], kind: Kind) -> None:
        self._problem, self.vectors, self._kind = problem, vectors, kind
        self.pools = [pool for pool in pools if len(pool.held) and len(pool.rows)]
        folder = problem.project / MODEL
        self._preprocess, tokenize = models.preprocess(folder), models.tokenizer(folder)
        self._device = models.device()
        self._texts = {pool.name: tokenize(_texts(pool)).to(self._device) for pool in self.pools}
        for name, parameter in problem.model.named_parameters():
            parameter.requires_grad_(name in vectors.names)

    @property
    def model(self) -> Clip:
        return self._problem.model

    def gradient(self, coefficients: np.ndarray, number: int, batch_size: int) -> float:
        """The loss of batch ``number``, one of each pool; the model then has the weights, and their gradients."""
        self.vectors.place(self.model, coefficients)
        return self.gradient_as_it_is(number, batch_size)

    def gradient_as_it_is(self, number: int, batch_size: int) -> float:
        """As `gradient`, at the weights that the model has."""
        self.model.eval()
        self.model.zero_grad(set_to_none=True)
        total = 0.0
        for pool in self.pools:
            draw = randomness.generator(self._problem.seed, "fit", "batch", pool.name, number)
            rows = np.sort(draw.permutation(pool.rows)[:batch_size])
            loss = self._loss(pool, rows) / len(self.pools)
            loss.backward()
            total += float(loss.detach())
        return total

    def held_out(self, coefficients: np.ndarray, count: int) -> float:
        """The loss on at most ``count`` held-out samples of each pool."""
        self.vectors.place(self.model, coefficients)
        return self.held_out_as_it_is(count)

    def held_out_as_it_is(self, count: int) -> float:
        """As `held_out`, at the weights that the model has."""
        self.model.eval()
        each = []
        with torch.no_grad():
            for pool in self.pools:
                rows = pool.drawn(pool.held, count, self._problem.seed, "held out")
                # Classes are the same in all parts, and encoding them costs more than a part's images.
                classes = models.text_features(self.model, self._texts[pool.name]) if pool.labelled else None
                sums = [float(self._loss(pool, part, classes)) * len(part) for part in _parts(rows)]
                each.append(sum(sums) / len(rows))
        return float(np.mean(each))

    def _loss(self, pool: FitPool, rows: np.ndarray, classes: torch.Tensor | None = None) -> torch.Tensor:
        """``classes``: the features of a labelled pool's classes, where they are known."""
        pixels = models.normalize(np.array(pool.data.images[rows]), self._preprocess, self._device)
        images = self.model.encode_image(pixels, normalize=True)
        if classes is None:
            tokens = self._texts[pool.name]
            classes = models.text_features(self.model, tokens if pool.labelled else tokens[torch.from_numpy(rows)])
        logits = self._logits(images, classes)
        if pool.labelled:
            labels = torch.from_numpy(np.asarray(pool.data.labels[rows], dtype=np.int64)).to(self._device)
            return entropy(logits) if self._kind == "entropy" else cross_entropy(logits, labels)
        if self._kind == "entropy":
            return (entropy(logits) + entropy(logits.T)) / 2
        own = torch.arange(len(rows), device=self._device)
        return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2

    def _logits(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        logits = self.model.logit_scale.exp() * images @ texts.T
        return logits if self.model.logit_bias is None else logits + self.model.logit_bias


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """The mean over rows of the entropy (nats) of softmax(logits), of shape (N, C)."""
    log_p = torch.log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1).mean()


def _texts(pool: FitPool) -> list[str]:
    """The prompts of a pool's classes, or the captions of its samples.

    Raises:
        UserError: a class has no name, and so no prompt.
    """
    if not pool.labelled:
        return list(pool.data.captions)
    card = pool.data.card
    for number, name in enumerate(card.classes):
        if not name.strip():
            raise UserError(f"fit: class {number} of the data of {pool.name!r} has no name, and so no prompt; name it")
    return [card.prompt.replace("{}", name) for name in card.classes]


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _FORWARD):
        yield rows[start : start + _FORWARD]
