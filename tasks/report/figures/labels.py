"""Labels that do not lie on each other: their places along one axis, moved apart no further than needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels that belong at ``values``: at least ``gap`` apart, between ``low`` and ``high``, in the same
    order, and with the smallest sum of squared moves (isotonic regression by pooling neighbours).

    Where ``low`` to ``high`` is too short for all of them, the gap is what fits.
    """
    count = len(values)
    if count == 0:
        return []
    gap = min(gap, (high - low) / (count - 1)) if count > 1 else gap
    order = np.argsort(values, kind="stable")
    wanted = np.asarray(values, float)[order] - gap * np.arange(count)
    blocks: list[list[float]] = []  # mean and size
    for value in wanted:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + mean * size) / (before[1] + size)
            before[1] += size
    pooled = np.concatenate([np.full(int(size), mean) for mean, size in blocks])
    placed = np.clip(pooled, low, high - gap * (count - 1)) + gap * np.arange(count)
    result = np.empty(count)
    result[order] = placed
    return [float(place) for place in result]


def spread_groups(frame: pd.DataFrame, by: Sequence[str], value: str, gap: float, low: float, high: float) -> pd.Series:
    """`spread` of a column within each group of labels that are shown together; indexed as ``frame``."""
    groups = frame.groupby(list(by), sort=False, observed=True)[value] if by else [("", frame[value])]
    parts = [pd.Series(spread(list(each), gap, low, high), index=each.index) for _, each in groups]
    return pd.concat(parts).reindex(frame.index) if parts else pd.Series(dtype=float)


def to_the_left(
    x: Sequence[float], label: Sequence[float], end: Sequence[float], width: float, height: float
) -> list[bool]:
    """Which labels stand to the left of the points (x, end) that they name; ``label`` is their places.

    One stands to the right unless it would leave 0…1 there, or lie on another point and not do so at the left.
    ``width`` and ``height`` are a label's; all of it is in the same unit across and in another one upwards.
    """

    def covers(number: int, side: int) -> int:
        start, stop = sorted((x[number] + side * width / 8, x[number] + side * width))
        return sum(
            start <= x[other] <= stop and abs(end[other] - label[number]) < height
            for other in range(len(x))
            if other != number
        ) + len(x) * (not 0 <= x[number] + side * width <= 1)

    return [covers(number, -1) < covers(number, 1) for number in range(len(x))]
