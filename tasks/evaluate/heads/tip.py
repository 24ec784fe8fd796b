"""The head ``tip``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tasks.evaluate.head import Classifier, SupportHead, Text, Tunable
from tasks.evaluate.support import Support, require_same_width


class Tip(SupportHead):
    """Tip-Adapter without training: logits = scale·f·tᵀ + alpha·Σ_k exp(−beta·(1 − f·k)) onehot(label of k).

    The keys k are the features of the support, one for each sample; the authors average each over ten augmentations.
    The defaults are the best values of the paper's ablation (16 shots of ImageNet). The authors' code starts from alpha
    1.17 and beta 1 there, from an alpha of up to 10 on other data sets, and searches both on validation data.
    """

    name: ClassVar[str] = "tip"
    source: ClassVar[str] = "Zhang et al. 2022, arXiv 2207.09519"
    searches = {"alpha": (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0), "beta": (0.5, 1.0, 3.0, 5.5, 8.0)}  # noqa: RUF012

    alpha: Tunable = 1.0
    """Weight of the keys; ``search`` chooses it on held-out support."""
    beta: Tunable = 5.5
    """How fast a key's weight falls with its distance; ``search`` chooses it on held-out support."""

    def fit(self, support: Support, text: Text) -> Classifier:
        assert self.alpha != "search"
        assert self.beta != "search"
        return Keys(support, text, self.alpha, self.beta)


@dataclass(frozen=True)
class Keys(Classifier):
    """A fitted Tip-Adapter."""

    support: Support
    text: Text
    alpha: float
    beta: float

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        require_same_width(features, self.support.features)
        affinity = features.double() @ self.support.features.double().T
        weights = affinity.sub_(1).mul_(self.beta).exp_()
        logits = self.text.logits(features)
        return logits.index_add_(1, self.support.labels, weights, alpha=self.alpha)
