"""Knowledge accumulation and zero-shot retention (FoMo-in-Flux, arXiv 2408.14471, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.scores import scores

if TYPE_CHECKING:
    from tasks.evaluate.routing import Routing

Recall = Mapping[str, Mapping[str, float]]
"""Direction (``image_to_text``, ``text_to_image``) → k → percent."""

TOP = 5
"""Of top-5."""
DIGITS = 4
"""Decimals of every percentage: more than the resolution of a test set."""


@dataclass(frozen=True)
class Accuracy:
    """Zero-shot classification of one set, in percent."""

    top1: float
    top5: float | None
    """None where there are fewer than five classes."""
    mean_per_class_recall: float
    """The mean over the classes that have samples, each counting once."""
    classes: int
    """Candidates."""
    evaluated: int
    """Samples."""
    share: float | None = None
    """Of the samples of the set, where not all were evaluated."""

    @classmethod
    def of(cls, nearest: np.ndarray, labels: np.ndarray, classes: int, share: float | None = None) -> Accuracy:
        """From what `tasks.evaluate.zeroshot.predict` gives, (M, k + 1), and the classes of the same samples, (M,).

        As CLIP_benchmark's ``acc1``, ``acc5`` and ``mean_per_class_recall`` (scikit-learn's balanced accuracy).
        """
        right = nearest[:, 0] == labels
        recalls = [float(right[labels == one].mean()) for one in np.unique(labels)]
        among = (nearest[:, 1:] == labels[:, None]).any(axis=1)
        return cls(
            top1=100 * int(right.sum()) / len(labels),
            top5=100 * int(among.sum()) / len(labels) if nearest.shape[1] > TOP else None,
            mean_per_class_recall=100 * fmean(recalls),
            classes=classes,
            evaluated=len(labels),
            share=share,
        )


@dataclass(frozen=True)
class OwnScore:
    """What a step's own expert scores on the set of its arrival's name, in percent: top-1, or the mean recall@5."""

    name: str
    score: float
    """Of all samples."""
    of_share: float | None = None
    """Of those that the deployed model was evaluated on, where these are a share."""


def percent(right: np.ndarray) -> float:
    """The share of right samples."""
    return 100 * int(right.sum()) / len(right)


def of_recall(recall: Recall) -> float:
    """The score of a set without classes: the mean recall@5 of both ways."""
    return fmean(way[str(TOP)] for way in recall.values())


def summary(
    accuracy: Mapping[str, Accuracy],
    recall: Mapping[str, Recall],
    pairs: Mapping[str, int],
    adaptation: Sequence[str],
    retention: Sequence[str],
    own: OwnScore | None = None,
) -> dict[str, Any]:
    """The content of ``metrics.json``: the accuracy of sets with classes, recall and size of sets without, in percent.

    A set's score is its top-1, or the mean of its recall@5 in both directions. A_KA is the mean score over the
    adaptation sets, A_ZS over the retention sets, each set counting once; the geometric mean is √(A_KA · A_ZS).
    ``own`` is the score of the step's own expert.
    """
    top1 = {name: one.top1 for name, one in accuracy.items()}
    scored = scores({"top1": top1, "recall": recall})
    accumulation = fmean(scored[name] for name in adaptation)
    retained = fmean(scored[name] for name in retention)
    names = (*adaptation, *retention)
    classified = {name: accuracy[name] for name in names if name in accuracy}
    content: dict[str, Any] = {
        "A_KA": round(accumulation, DIGITS),
        "A_ZS": round(retained, DIGITS),
        "geometric_mean": round(math.sqrt(accumulation * retained), DIGITS),
        "top1": {name: round(one.top1, DIGITS) for name, one in classified.items()},
    }
    if recall:
        content["recall"] = {name: _rounded(recall[name]) for name in names if name in recall}
    content["size"] = {name: accuracy[name].evaluated if name in accuracy else pairs[name] for name in names}
    if top5 := {name: round(one.top5, DIGITS) for name, one in classified.items() if one.top5 is not None}:
        content["top5"] = top5
    if classified:
        content["mean_per_class_recall"] = {
            name: round(one.mean_per_class_recall, DIGITS) for name, one in classified.items()
        }
        content["classes"] = {name: one.classes for name, one in classified.items()}
    if partial := {name: one.share for name, one in classified.items() if one.share is not None}:
        content["share"] = partial
    if own:
        content["expert"] = {"set": own.name, "score": round(own.score, DIGITS)}
        if own.of_share is not None:
            content["expert"]["score_of_share"] = round(own.of_share, DIGITS)
    return content


def routing(
    summary: Mapping[str, Any],
    routed: Mapping[str, Routing],
    oracle: Mapping[str, float],
    adaptation: Sequence[str],
) -> dict[str, Any]:
    """What ``metrics.json`` says of routes: ``images`` (set → route → images), and for the sets that are named after an
    arrival so far ``expert`` (its route), ``accuracy`` (percent of the images that went there) and ``oracle`` (the
    score with that expert alone).

    ``oracle_A_KA`` is the mean over the adaptation sets of the oracle's score, or of the score by route where there is
    no oracle yet; ``mean_accuracy`` is the mean over the sets that have one. ``summary`` is the rest of the file.
    """
    scored = scores(summary)
    right = {name: one.accuracy for name, one in routed.items() if one.accuracy is not None}
    return {
        "images": {name: dict(one.images) for name, one in routed.items()},
        "expert": {name: one.expert for name, one in routed.items() if one.expert is not None},
        "accuracy": {name: round(value, DIGITS) for name, value in right.items()},
        "mean_accuracy": round(fmean(right.values()), DIGITS) if right else None,
        "oracle": {name: round(value, DIGITS) for name, value in oracle.items()},
        "oracle_A_KA": round(fmean(oracle.get(name, scored[name]) for name in adaptation), DIGITS),
    }


def _rounded(recall: Recall) -> Recall:
    return {way: {k: round(value, DIGITS) for k, value in at.items()} for way, at in recall.items()}
