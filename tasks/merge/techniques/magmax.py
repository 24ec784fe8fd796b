"""MagMax: the entry that moved most."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tasks.merge.technique import Accumulator, Array, Expert, State, Summary


class MagMax(Accumulator):
    """θ_0 + λ τ_k, entry by entry the τ_k of largest magnitude; the later expert wins ties."""

    name: ClassVar[str] = "magmax"
    source: ClassVar[str] = "Marczak et al. 2024, MagMax (arXiv 2407.06322), section 4"
    state: ClassVar[tuple[str, ...]] = ("largest",)

    scale: float = 1.0
    """λ; TIME's. The paper uses 0.5."""

    def update(self, state: State, x: Array, expert: Expert) -> None:
        np.copyto(state["largest"], x, where=np.abs(x) >= np.abs(state["largest"]))

    def finalise(self, state: State, summary: Summary) -> Array:
        return state["largest"] * self.scale
