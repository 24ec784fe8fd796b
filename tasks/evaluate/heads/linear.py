"""The head ``linear``."""

from __future__ import annotations

from typing import ClassVar

import torch

from tasks.evaluate.head import Classifier, LinearClassifier, SupportHead, Text, Tunable
from tasks.evaluate.support import Support

TOLERANCE = 1e-8
"""Of the gradient's largest entry, where the mean loss is of order one."""
MOST = 1000
"""Iterations of L-BFGS."""


class LinearProbe(SupportHead):
    """Logistic regression on the support, for comparison: min ½‖W‖² + c·Σ cross-entropy(f·Wᵀ + b), b not penalized.

    L-BFGS in float64 from zero, until the gradient is below 1e-8 or for 1000 iterations.
    """

    name: ClassVar[str] = "linear"
    source: ClassVar[str] = "Radford et al. 2021, arXiv 2103.00020"
    mixes: ClassVar[bool] = False
    searches = {"c": (0.1, 1.0, 10.0, 31.6, 100.0, 1000.0)}  # noqa: RUF012

    c: Tunable = 31.6
    """Inverse strength of the penalty, as scikit-learn's C; ``search`` chooses it on held-out support."""

    def fit(self, support: Support, text: Text) -> Classifier:  # noqa: ARG002 - no zero-shot part
        assert self.c != "search"
        return regression(support, self.c)


def regression(support: Support, c: float) -> LinearClassifier:
    """Multinomial logistic regression on features, float (M, D)."""
    features, count = support.features.double(), len(support.labels)
    weight = torch.zeros(len(support.classes), features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(support.classes), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=MOST, tolerance_grad=TOLERANCE, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        fit = torch.nn.functional.cross_entropy(features @ weight.T + bias, support.labels)
        total = fit + weight.square().sum() / (2 * c * count)
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    return LinearClassifier(weight.detach(), bias.detach())
