"""The learning rate: cosine with linear warm-up, restarted at each time step (TIME, arXiv 2412.06712, appendix)."""

from __future__ import annotations

import math

FLOOR = 1e-3
"""Where the cosine ends, as a fraction of the peak."""


def learning_rate(index: int, steps: int, peak: float, warmup: float) -> float:
    """The rate of training step ``index`` (from 0) of ``steps``.

    ``warmup`` is the fraction of the steps that rise linearly to ``peak``; the last step is at `FLOOR` × ``peak``.
    """
    rising = round(warmup * steps)
    if index < rising:
        return peak * (index + 1) / rising
    done = (index - rising) / max(steps - rising - 1, 1)
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))
