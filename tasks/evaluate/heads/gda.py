"""The head ``gda``."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from tasks.evaluate.head import Classifier, LinearClassifier, MomentHead, Text, Tunable
from tasks.evaluate.support import Moments

NOISE = 1e-12
"""Scatter below this share of Σ‖f‖² is rounding: the samples of each class are equal."""


class Gda(MomentHead):
    """Gaussian discriminant analysis with one covariance for all classes, added to zero-shot.

    logits = scale·f·tᵀ + alpha·(f·W + b), W_c = Σ⁻¹μ_c, b_c = log(1/C) − ½ μ_cᵀΣ⁻¹μ_c, with the inverse covariance
    Σ⁻¹ = D·pinv((n−1)S + tr(S)·I) of the authors, S the pooled covariance with n−1. Where no class has two different
    samples, S is 0, and so is its pseudo-inverse: the head is then zero-shot.
    """

    name: ClassVar[str] = "gda"
    source: ClassVar[str] = "Wang et al. 2024, arXiv 2402.04087"
    searches = {"alpha": (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)}  # noqa: RUF012

    alpha: Tunable = 1.0
    """Weight of the Gaussian part; ``search`` chooses it on held-out support."""

    def from_moments(self, moments: Moments, text: Text) -> Classifier:
        assert self.alpha != "search"
        means = moments.sums / moments.counts[:, None]
        precision = inverse_covariance(moments)
        weight = means @ precision
        bias = -math.log(len(means)) - 0.5 * (weight * means).sum(dim=1)
        return LinearClassifier(text.scale * text.features.double() + self.alpha * weight, self.alpha * bias)


def inverse_covariance(moments: Moments) -> torch.Tensor:
    """Σ⁻¹ = D·pinv((n−1)S + tr(S)·I), (n−1)S = Σ f fᵀ − Σ_c s_c s_cᵀ/n_c: float64, shape (D, D)."""
    width, count = moments.gram.shape[0], int(moments.counts.sum())
    scatter = moments.gram - moments.sums.T @ (moments.sums / moments.counts[:, None])
    trace = scatter.trace()
    if trace <= NOISE * moments.gram.trace():
        return torch.zeros_like(scatter)
    ridge = trace / (count - 1) * torch.eye(width, dtype=torch.float64)
    inverse: torch.Tensor = width * torch.linalg.pinv((scatter + scatter.T) / 2 + ridge, hermitian=True)
    return inverse
