"""One number for each evaluation set, as A_KA and A_ZS average them."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

ROLES = ("adaptation", "retention")
"""What an evaluation set is for; keys of ``evaluate`` in params.yaml."""
MEANS = ("A_KA", "A_ZS", "geometric_mean")
"""What ``metrics.json`` says of all sets together: the means over either role, and of the two."""


def scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Evaluation set → percent, from the content of ``metrics.json``.

    Top-1; for a set of images and texts without classes the mean recall@5 of both directions (FoMo-in-Flux, arXiv
    2408.14471).
    """
    recall = metrics.get("recall", {})
    return {**metrics["top1"]} | {name: fmean(way["5"] for way in ways.values()) for name, ways in recall.items()}
