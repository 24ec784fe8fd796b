"""Regularizers across time steps: a quadratic penalty on changes of parameters that were important to earlier steps.

The penalty is factor · Σ_k Ω_k (θ_k − a_k)², with one importance Ω and one anchor a for each parameter, for
any number of earlier steps. Its gradient is added in closed form after the loss's own.
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
    """What one time step passes to the next; every tensor float32, with the name and the shape of its parameter."""

    importance: Weights
    """Ω, not negative; zero for a parameter that is missing."""
    anchor: Weights
    """a, for the same parameters."""


class Pull(ABC):
    """A regularizer during one training: the penalty, and the values collected for the next step."""

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
        """The penalty at the current parameters."""
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

    def after_step(self) -> None:  # noqa: B027 - most regularizers collect nothing here
        """Called after the optimizer has changed the parameters."""

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The values collected so far, which a training checkpoint stores."""
        return {}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:  # noqa: B027
        """Resume with the values of `tensors`."""

    @abstractmethod
    def finish(self, gradients: Gradients, samples: int) -> Importance:
        """The importances for the next time step; called once, with the trained parameters.

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
        """Batches whose gradient it needs after training."""
        return 0

    @abstractmethod
    def begin(self, model: nn.Module, before: Importance | None) -> Pull:
        """The pull for one training of ``model``, whose parameters are where it starts; ``before`` is None at first."""


def chosen(named: Named) -> Regularizer:
    """The regularizer of ``train.regularizer``.

    Raises:
        UserError: an unknown name, or a wrong setting.
    """
    return create(Regularizer, named)  # type: ignore[type-abstract]
