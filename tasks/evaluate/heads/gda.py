"""The head ``gda``."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch

from tasks.errors import UserError
from tasks.evaluate.head import Classifier, LinearClassifier, MomentHead, Text, Tunable
from tasks.evaluate.support import Moments, Support

NOISE = 1e-12
"""Scatter below this share of Σ‖f‖² is rounding: the samples of each class are equal."""


class Gda(MomentHead):
    """Gaussian discriminant analysis with one covariance for all classes, added to zero-shot.

    logits = scale·f·tᵀ + alpha·(f·W + b), W_c = Σ⁻¹μ_c, b_c = log(1/C) − ½ μ_cᵀΣ⁻¹μ_c, with the inverse covariance
    Σ⁻¹ = D·pinv((n−1)S + tr(S)·I) of the authors, S the pooled covariance with n−1. Where no class has two different
    samples, S is 0, and so is its pseudo-inverse: the head is then zero-shot.

    With ``alpha: auto`` the Gaussian part is log N(f; μ_c, Σ) up to a constant, so that zero-shot is the prior of the
    classes. Σ = (1−λ)S' + λ·tr(S')/D·I, with S' the covariance with n−C and λ = D/(n−1+D), is the authors' matrix
    scaled to the trace of S': alpha is (1 + (n−1)/D)·(n−C)/(n−1).
    """

    name: ClassVar[str] = "gda"
    source: ClassVar[str] = "Wang et al. 2024, arXiv 2402.04087"
    searches = {"alpha": (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)}  # noqa: RUF012

    alpha: Tunable | Literal["auto"] = "auto"
    """Weight of the Gaussian part; ``auto`` follows from n, C and D, ``search`` chooses it on held-out support."""

    def settled(self, data: Support | Moments) -> Self:
        if self.alpha != "auto":
            return self
        counts = data.counts() if isinstance(data, Support) else data.counts
        width = (data.features if isinstance(data, Support) else data.sums).shape[1]
        return self.model_copy(update={"alpha": natural_weight(int(counts.sum()), len(counts), width)})

    def from_moments(self, moments: Moments, text: Text) -> Classifier:
        assert not isinstance(self.alpha, str)
        means = moments.sums / moments.counts[:, None]
        precision = inverse_covariance(moments)
        weight = means @ precision
        bias = -math.log(len(means)) - 0.5 * (weight * means).sum(dim=1)
        return LinearClassifier(text.scale * text.features.double() + self.alpha * weight, self.alpha * bias)


def natural_weight(samples: int, classes: int, width: int) -> float:
    """The alpha with which alpha·Σ⁻¹ of the authors is the inverse of a covariance whose trace is that of S'.

    S' has n−C degrees of freedom; without any (one sample a class) the weight is 0.
    """
    return (1 + (samples - 1) / width) * (samples - classes) / (samples - 1)


def inverse_covariance(moments: Moments) -> torch.Tensor:
    """Σ⁻¹ = D·pinv((n−1)S + tr(S)·I), (n−1)S = Σ f fᵀ − Σ_c s_c s_cᵀ/n_c: float64, shape (D, D).

    Raises:
        UserError: there is none; sums of features that anybody made may be too large.
    """
    width, count = moments.gram.shape[0], int(moments.counts.sum())
    scatter = moments.gram - moments.sums.T @ (moments.sums / moments.counts[:, None])
    trace = scatter.trace()
    if trace.isfinite() and trace <= NOISE * moments.gram.trace():
        return torch.zeros_like(scatter)
    ridge = trace / (count - 1) * torch.eye(width, dtype=torch.float64)
    try:
        inverse: torch.Tensor = width * torch.linalg.pinv((scatter + scatter.T) / 2 + ridge, hermitian=True)
    except torch.linalg.LinAlgError:
        inverse = torch.full_like(scatter, torch.nan)
    if not inverse.isfinite().all():
        raise UserError("gda: the covariance of the features has no inverse; they are damaged, measure them again")
    return inverse
