"""The head ``knn``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field

from tasks.evaluate.head import Classifier, SupportHead, Text
from tasks.evaluate.support import Support, require_same_width


class Knn(SupportHead):
    """The nearest samples vote: P = mix·P_nn + (1−mix)·P_zs where the largest P_zs is below threshold, else P_zs.

    P_nn sums exp(f·k / temperature) of the nearest samples by class, and is normalized; P_zs is the softmax of
    zero-shot. ``cap`` keeps that many samples of each class, chosen by herding.
    """

    name: ClassVar[str] = "knn"
    source: ClassVar[str] = "Gui et al. 2024, arXiv 2404.09447"

    neighbours: int = Field(default=16, gt=0)
    """How many samples vote; all of them where there are fewer."""
    temperature: float = Field(default=0.07, gt=0)
    """Of the votes."""
    mix: float = Field(default=0.5, ge=0, le=1)
    """Share of the votes; 1 is nearest neighbours alone."""
    threshold: float = Field(default=1.0, gt=0, le=1)
    """Zero-shot that is at least as sure is left alone; 1 mixes always."""
    cap: int | None = Field(default=None, gt=0)
    """At most so many samples of a class."""

    def fit(self, support: Support, text: Text) -> Classifier:
        kept = support.where(herded(support, self.cap)) if self.cap else support
        return Neighbours(kept, text, self)


@dataclass(frozen=True)
class Neighbours(Classifier):
    """A fitted nearest-neighbour head; its logits are probabilities."""

    support: Support
    text: Text
    settings: Knn

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        require_same_width(features, self.support.features)
        settings = self.settings
        similar = features.double() @ self.support.features.double().T
        top, at = similar.topk(min(settings.neighbours, similar.shape[1]), dim=1)
        zeroshot = self.text.logits(features).softmax(dim=1)
        votes = torch.zeros_like(zeroshot)
        votes.scatter_add_(1, self.support.labels[at], (top / settings.temperature).softmax(dim=1))
        mixed = settings.mix * votes + (1 - settings.mix) * zeroshot
        sure = zeroshot.amax(dim=1, keepdim=True) >= settings.threshold
        return torch.where(sure & (settings.threshold < 1), zeroshot, mixed)


def herded(support: Support, cap: int) -> torch.Tensor:
    """Which samples to keep, boolean (M,): of each class ``cap``, picked one by one so that the mean of those picked
    stays nearest to the mean of all (herding, Welling 2009; as in iCaRL, arXiv 1611.07725)."""
    keep = torch.zeros(len(support.labels), dtype=torch.bool)
    for label in range(len(support.classes)):
        rows = torch.nonzero(support.labels == label).flatten()
        own = support.features[rows].double()
        mean, total = own.mean(dim=0), torch.zeros(own.shape[1], dtype=torch.float64)
        left = torch.ones(len(rows), dtype=torch.bool)
        for number in range(1, min(cap, len(rows)) + 1):
            distance = (mean - (total + own) / number).square().sum(dim=1)
            pick = int(distance.masked_fill(~left, torch.inf).argmin())
            left[pick] = False
            total += own[pick]
        keep[rows[~left]] = True
    return keep
