"""The learning rate: within a time step, and from one time step to the next.

Within a step: cosine with linear warm-up, restarted at each step (TIME, arXiv 2412.06712, appendix). Across steps:
the meta-schedules of FoMo-in-Flux (arXiv 2408.14471, section on learning rates), as its public code defines them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MetaSchedule = Literal["constant", "decaying", "rsqrt"]
"""How time steps relate.

``constant``: every step's cosine rises to the same peak.
``decaying``: it rises to where one cosine over all steps so far would have come by now (FoMo-in-Flux calls this
autoregressive).
``rsqrt``: a reciprocal square root with a linear cool-down at the end of each step (Zhai et al., arXiv 2106.04560,
section 2), which the next step recovers from: it warms up to where the curve was before the cool-down.
"""

FLOOR = 1e-3
"""Where a step ends, as a fraction of the peak."""
COOLDOWN = 0.2
"""Fraction of a step's training steps that cool down under ``rsqrt``."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every training step of one time step."""

    steps: int
    peak: float
    warmup: float
    """Fraction of the steps that rise linearly."""
    meta: MetaSchedule = "constant"
    earlier: int = 0
    """Time steps before this one, all taken to be as long."""

    def __call__(self, index: int) -> float:
        """The rate of training step ``index``, from 0."""
        return self._rsqrt(index) if self.meta == "rsqrt" else self._cosine(index)

    @property
    def _rising(self) -> int:
        return round(self.warmup * self.steps)

    def _cosine(self, index: int) -> float:
        peak = self._decayed() if self.meta == "decaying" else self.peak
        if index < self._rising:
            return peak * (index + 1) / self._rising
        done = (index - self._rising) / max(self.steps - self._rising - 1, 1)
        floor = FLOOR * self.peak
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * done))

    def _decayed(self) -> float:
        if not self.earlier:
            return self.peak
        falling = max(self.steps - self._rising, 1)
        done = (self.earlier * falling + 1) / ((self.earlier + 1) * falling)
        return self.peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))

    def _rsqrt(self, index: int) -> float:
        rising = max(self._rising, 1)
        cooling = min(round(COOLDOWN * self.steps), self.steps - rising)
        before = self.earlier * (self.steps - rising - cooling)

        def decayed(n: int) -> float:
            return self.peak * (FLOOR + (1 - FLOOR) * math.sqrt(rising / (n + before)))

        if index < rising:
            return decayed(rising) * (index + 1) / rising
        left = self.steps - 1 - index
        if left >= cooling:
            return decayed(index)
        return max(decayed(index) * left / cooling, FLOOR * self.peak)
