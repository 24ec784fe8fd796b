"""MagMax: the entry that moved most."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from typing_extensions import override

from tasks.merge.sequential import Accumulator, Expert, State, Summary
from tasks.merge.stream import Piece, Window
from tasks.merge.types import Array


class MagMax(Accumulator):
    """θ_0 + λ τ_k, entry by entry the τ_k of largest magnitude; of two that are equal, the positive one.

    That is the largest of all τ_k or the smallest, whichever is further from 0: the batch form keeps these two, and
    chooses at the end.
    """

    name: ClassVar[str] = "magmax"
    source: ClassVar[str] = "Marczak et al. 2024, MagMax (arXiv 2407.06322), section 4"
    state: ClassVar[tuple[str, ...]] = ("furthest",)

    scale: float = 1.0
    """λ; TIME's. The paper uses 0.5."""

    @override
    def update(self, state: State, x: Array, expert: Expert) -> None:
        furthest = state["furthest"]
        low = np.minimum(furthest, x)
        np.maximum(furthest, x, out=furthest)
        _choose(furthest, low)

    @override
    def finalise(self, state: State, summary: Summary) -> Array:
        return state["furthest"] * self.scale

    @classmethod
    def by_part(cls) -> tuple[str, ...]:
        return ("scale",)

    @override
    def plan(self, window: Window) -> Callable[[Piece], Array]:
        def merged(piece: Piece) -> Array:
            high, low = piece.zeros(), piece.zeros()
            for i in range(piece.count):
                x = piece.vector(i)
                np.maximum(high, x, out=high)
                np.minimum(low, x, out=low)
            _choose(high, low)
            high *= self.at(piece).scale
            return high

        return merged


def _choose(high: Array, low: Array) -> None:
    """Leave in ``high`` what is further from 0, ``high`` itself where both are as far; ``low`` is used up."""
    taken = (high >= -low).astype(high.dtype)
    # One of two by arithmetic, exact since the other is multiplied by 0: faster by far than a masked copy.
    high *= taken
    low *= 1 - taken
    high += low
    high += 0.0  # a zero has one sign, whatever the order of the experts
