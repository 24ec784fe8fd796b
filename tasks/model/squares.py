"""Sums of squared gradients: the diagonal of the Fisher information, whatever a sample is."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class SquaredGradients:
    """Σ value · g² for each parameter, float32, where the parameters are."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self.totals = {name: torch.zeros_like(p) for name, p in parameters.items()}

    @torch.no_grad()
    def add(self, gradients: Mapping[str, torch.Tensor | None], value: float) -> None:
        """Take in one gradient a parameter; none where the loss does not depend on it."""
        for name, gradient in gradients.items():
            if gradient is not None:
                self.totals[name].addcmul_(gradient, gradient, value=value)
