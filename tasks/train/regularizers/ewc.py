"""Elastic weight consolidation."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from tasks.model.squares import SquaredGradients
from tasks.train.regularizer import Gradients, Importance, Pull, Regularizer


class Ewc(Regularizer):
    """(weight / 2) Σ_s Σ_k F_sk (θ_k − θ_sk)² over the earlier time steps s, with F_s the diagonal of the Fisher
    information at the expert θ_s.

    The sum over steps is kept as one: Ω = Σ_s F_s and a = Σ_s F_s θ_s / Ω give the same gradient. F is estimated from
    ``batches`` batches of N samples as N times the mean squared gradient of their loss: the mean over samples of the
    squared gradient, where samples are independent and the mean gradient is near zero, as at the end of training.
    """

    name: ClassVar[str] = "ewc"
    source: ClassVar[str] = "Kirkpatrick et al. 2017 (arXiv 1612.00796), equation 3"
    copies: ClassVar[int] = 3

    weight: float = Field(gt=0)
    batches: int = Field(default=32, gt=0)

    @property
    def extra(self) -> int:
        return self.batches

    def begin(self, model: nn.Module, before: Importance | None) -> Pull:
        return _EwcPull(self, model, before)


class _EwcPull(Pull):
    def __init__(self, settings: Ewc, model: nn.Module, before: Importance | None):
        super().__init__(model, before)
        self.factor = settings.weight / 2
        self._batches = settings.batches

    def finish(self, gradients: Gradients, samples: int) -> Importance:
        squares = SquaredGradients(self.parameters)
        for number in range(self._batches):
            gradients(number)
            squares.add({name: p.grad for name, p in self.parameters.items()}, samples / self._batches)
        fisher = squares.totals
        importance = dict(self.before.importance) if self.before else {}
        anchor = dict(self.before.anchor) if self.before else {}
        for name, p in self.parameters.items():
            new, current = fisher[name].cpu(), p.detach().cpu()
            old = importance.get(name, torch.zeros_like(new))
            total = importance[name] = old + new
            # The mean of the anchors, weighted with their importance; if all are zero, any anchor is right.
            share = torch.where(total > 0, new / total, 1.0)
            anchor[name] = torch.lerp(anchor.get(name, current), current, share)
        return Importance(importance, anchor)
