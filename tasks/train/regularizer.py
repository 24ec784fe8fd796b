"""What a regularizer across time steps is: a quadratic pull towards what earlier steps hold important.

The penalty is factor · Σ_k Ω_k (θ_k − a_k)², with one importance Ω and one anchor a for each parameter, whatever the
number of steps before. Its gradient is added in closed form after the loss's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from tasks.choice import Choice, create
from tasks.model.checkpoints import Weights
from tasks.params import Named

Gradients = Callable[[int], object]
"""Leaves in each parameter's ``grad`` the gradient of the loss on a batch that was not trained on, by its number."""


@dataclass(frozen=True)
class Importance:
    """What one time step hands on to the next; every tensor float32, by the name and of the shape of its parameter."""

    importance: Weights
    """Ω, not negative; a parameter that is not there has none."""
    anchor: Weights
    """a, for the same parameters."""


class Pull(ABC):
    """A regularizer at work in one training: the penalty, and what is gathered for the next step's."""

    factor: float

    def __init__(self, model: nn.Module, before: Importance | None):
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.before = before
        known = before.importance if before else {}
        self._held = [name for name in self.parameters if name in known]
        self._importance = [known[name].to(self.parameters[name].device) for name in self._held]
        anchor = before.anchor if before else {}
        self._anchor = [anchor[name].to(self.parameters[name].device) for name in self._held]

    @torch.no_grad()
    def penalty(self) -> float:
        """The penalty where the parameters are now."""
        held = [self.parameters[name] for name in self._held]
        pairs = zip(self._importance, held, self._anchor, strict=True)
        return self.factor * sum(float((weight * (p - a).square()).sum()) for weight, p, a in pairs)

    @torch.no_grad()
    def before_step(self) -> None:
        """Add the penalty's gradient to the parameters', which hold the loss's own, unscaled and not clipped yet."""
        for name, weight, anchor in zip(self._held, self._importance, self._anchor, strict=True):
            p = self.parameters[name]
            pull = weight * (p - anchor)
            p.grad = pull.mul_(2 * self.factor) if p.grad is None else p.grad.add_(pull, alpha=2 * self.factor)

    def after_step(self) -> None:  # noqa: B027 - nothing to gather, unless a regularizer says so
        """The optimizer has moved the parameters."""

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """What has been gathered so far: a training that goes on from a checkpoint needs it."""
        return {}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:  # noqa: B027
        """Go on with what `tensors` gave."""

    @abstractmethod
    def finish(self, gradients: Gradients, samples: int) -> Importance:
        """What the next time step is pulled by; called once, with the parameters as training left them.

        A batch of ``gradients`` has ``samples`` samples.
        """


class Regularizer(Choice):
    """A regularizer; one file in `tasks.train.regularizers` defines one."""

    key: ClassVar[str] = "train.regularizer"
    package: ClassVar[str] = "tasks.train.regularizers"
    copies: ClassVar[int]
    """Tensors that it keeps in memory for each parameter."""

    @property
    def extra(self) -> int:
        """Batches whose gradient it asks for after training."""
        return 0

    @abstractmethod
    def begin(self, model: nn.Module, before: Importance | None) -> Pull:
        """The pull for one training of ``model``, whose parameters are where it starts; ``before`` is None at first."""


def chosen(named: Named) -> Regularizer:
    """The regularizer of ``train.regularizer``.

    Raises:
        UserError: there is none of that name, or a setting is wrong.
    """
    return create(Regularizer, named)  # type: ignore[type-abstract]
