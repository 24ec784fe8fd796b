"""Synaptic intelligence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from tasks.train.regularizer import Gradients, Importance, Pull, Regularizer


class Si(Regularizer):
    """weight · Σ_k Ω_k (θ_k − θ_prev,k)², with Ω_k = Σ_s max(ω_sk, 0) / (Δ_sk² + xi) over the earlier time steps s.

    ω_s is the path integral −Σ g·δθ of the loss's gradient g (without the penalty, before clipping) over the training
    of step s, Δ_s how far that training moved the parameter, and θ_prev the last expert trained.
    """

    name: ClassVar[str] = "si"
    source: ClassVar[str] = "Zenke et al. 2017 (arXiv 1703.04200), equations 3 to 5"
    copies: ClassVar[int] = 6

    weight: float = Field(default=0.1, gt=0)
    xi: float = Field(default=1e-3, gt=0)
    """Bounds Ω where a parameter has hardly moved."""

    def begin(self, model: nn.Module, before: Importance | None) -> Pull:
        return _SiPull(self, model, before)


class _SiPull(Pull):
    def __init__(self, settings: Si, model: nn.Module, before: Importance | None):
        super().__init__(model, before)
        self.factor, self._xi = settings.weight, settings.xi
        self._start = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._path = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self._step: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def before_step(self) -> None:
        self._step = {
            name: (p.detach().clone(), p.grad.clone()) for name, p in self.parameters.items() if p.grad is not None
        }
        super().before_step()

    @torch.no_grad()
    def after_step(self) -> None:
        for name, (before, gradient) in self._step.items():
            self._path[name].addcmul_(gradient, before - self.parameters[name])

    def tensors(self) -> Mapping[str, torch.Tensor]:
        start = {f"start.{name}": tensor for name, tensor in self._start.items()}
        return start | {f"path.{name}": tensor for name, tensor in self._path.items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for target, prefix in ((self._start, "start"), (self._path, "path")):
            for name, tensor in target.items():
                tensor.copy_(tensors[f"{prefix}.{name}"])

    def finish(self, gradients: Gradients, samples: int) -> Importance:  # noqa: ARG002 - the path is known already
        importance = dict(self.before.importance) if self.before else {}
        anchor = dict(self.before.anchor) if self.before else {}
        for name, p in self.parameters.items():
            current = p.detach()
            gained = self._path[name].clamp_min(0) / ((current - self._start[name]).square() + self._xi)
            importance[name] = gained.cpu() + importance.get(name, 0)
            anchor[name] = current.cpu().clone()
        return Importance(importance, anchor)
