"""Evaluation on a share of a test set: which samples are drawn."""

from __future__ import annotations

import math

import numpy as np

from tasks.model.datasets import Dataset
from tasks.params import Evaluate
from tasks.randomness import derive


def share_of(settings: Evaluate, name: str) -> float | None:
    """The share of the set ``name``, which has classes, that is evaluated; None where all of it is."""
    return None if name in settings.in_full else settings.share


def drawn(name: str, data: Dataset, share: float | None) -> np.ndarray:
    """The samples of the set ``name`` that are evaluated: row numbers in order, int64.

    Of each class ``share`` of its samples, rounded up: those whose ids have the lowest hashes. So they are the same
    at every step, in every cell of a grid and for every seed, and scores can be compared.
    """
    if share is None:
        return np.arange(len(data))
    place = np.array([derive(0, "evaluated share", name, one) for one in data.ids], dtype=np.uint64)
    order = np.lexsort((place, data.labels))
    _, starts, counts = np.unique(data.labels[order], return_index=True, return_counts=True)
    chosen = [order[start : start + math.ceil(share * count)] for start, count in zip(starts, counts, strict=True)]
    return np.sort(np.concatenate(chosen))
