"""MagMax: the entry that moved most."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from typing_extensions import override

from tasks.merge.sequential import Accumulator, Expert, State, Summary
from tasks.merge.types import Array


class MagMax(Accumulator):
    """θ_0 + λ τ_k, entry by entry the τ_k of largest magnitude; the later expert wins ties."""

    name: ClassVar[str] = "magmax"
    source: ClassVar[str] = "Marczak et al. 2024, MagMax (arXiv 2407.06322), section 4"
    state: ClassVar[tuple[str, ...]] = ("largest",)

    scale: float = 1.0
    """λ; TIME's. The paper uses 0.5."""

    @override
    def update(self, state: State, x: Array, expert: Expert) -> None:
        largest = state["largest"]
        # One of two by arithmetic, exact since the other is multiplied by 0: faster by far than a masked copy.
        taken = (np.abs(x) >= np.abs(largest)).astype(np.float32)
        x *= taken
        largest *= 1 - taken
        largest += x

    @override
    def finalise(self, state: State, summary: Summary) -> Array:
        return state["largest"] * self.scale
