"""Knowledge accumulation and zero-shot retention (FoMo-in-Flux, arXiv 2408.14471, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

DIGITS = 4
"""Decimals of every percentage: more than a test set resolves, few enough to read."""


def summary(
    top1: Mapping[str, float], size: Mapping[str, int], adaptation: Sequence[str], retention: Sequence[str]
) -> dict[str, Any]:
    """The content of ``metrics.json``; ``top1`` in percent.

    A_KA is the mean top-1 over the adaptation sets, A_ZS over the retention sets, each set counting once; the
    geometric mean is √(A_KA · A_ZS).
    """
    accumulation = fmean(top1[name] for name in adaptation)
    retained = fmean(top1[name] for name in retention)
    return {
        "A_KA": round(accumulation, DIGITS),
        "A_ZS": round(retained, DIGITS),
        "geometric_mean": round(math.sqrt(accumulation * retained), DIGITS),
        "top1": {name: round(top1[name], DIGITS) for name in (*adaptation, *retention)},
        "size": {name: size[name] for name in (*adaptation, *retention)},
    }
