"""The head ``prototype``."""

from __future__ import annotations

from typing import ClassVar

import torch

from tasks.evaluate.head import Classifier, LinearClassifier, MomentHead, Text
from tasks.evaluate.support import Moments


class Prototype(MomentHead):
    """The class whose mean feature is nearest: logit = cos(f, p_c), p_c the mean of the class's normalized features.

    SimpleCIL on the base's features. With ``features: base+first`` it is APER: the features of the base beside those of
    the first step's expert, each normalized, so that neither rules by its length (the authors normalize both as one).
    """

    name: ClassVar[str] = "prototype"
    source: ClassVar[str] = "Zhou et al. 2023, arXiv 2303.07338"
    mixes: ClassVar[bool] = False

    def from_moments(self, moments: Moments, text: Text) -> Classifier:  # noqa: ARG002 - no zero-shot part
        means = moments.sums / moments.counts[:, None]
        weight = torch.nn.functional.normalize(means, dim=1)
        return LinearClassifier(weight, torch.zeros(len(weight), dtype=torch.float64))
