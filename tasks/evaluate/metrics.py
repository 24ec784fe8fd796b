"""Knowledge accumulation and zero-shot retention (FoMo-in-Flux, arXiv 2408.14471, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tasks.scores import scores

Recall = Mapping[str, Mapping[str, float]]
"""Direction (``image_to_text``, ``text_to_image``) → k → percent."""

DIGITS = 4
"""Decimals of every percentage: more than the resolution of a test set."""


def summary(
    top1: Mapping[str, float],
    recall: Mapping[str, Recall],
    size: Mapping[str, int],
    adaptation: Sequence[str],
    retention: Sequence[str],
) -> dict[str, Any]:
    """The content of ``metrics.json``; ``top1`` of sets with classes and ``recall`` of sets without, in percent.

    A set's score is its top-1, or the mean of its recall@5 in both directions. A_KA is the mean score over the
    adaptation sets, A_ZS over the retention sets, each set counting once; the geometric mean is √(A_KA · A_ZS).
    """
    scored = scores({"top1": top1, "recall": recall})
    accumulation = fmean(scored[name] for name in adaptation)
    retained = fmean(scored[name] for name in retention)
    names = (*adaptation, *retention)
    content: dict[str, Any] = {
        "A_KA": round(accumulation, DIGITS),
        "A_ZS": round(retained, DIGITS),
        "geometric_mean": round(math.sqrt(accumulation * retained), DIGITS),
        "top1": {name: round(top1[name], DIGITS) for name in names if name in top1},
    }
    if recall:
        content["recall"] = {name: _rounded(recall[name]) for name in names if name in recall}
    return content | {"size": {name: size[name] for name in names}}


def _rounded(recall: Recall) -> Recall:
    return {way: {k: round(value, DIGITS) for k, value in at.items()} for way, at in recall.items()}
