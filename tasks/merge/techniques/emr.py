"""EMR: elect signs, and keep the largest."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from typing_extensions import override

from tasks.merge.sequential import Accumulator, Expert, State, Summary
from tasks.merge.types import Array


class Emr(Accumulator):
    """θ_0 + λ u, u the τ_k of largest magnitude among those with the sign of Σ τ_k, entry by entry (− where it is 0).

    EMR's unified model, which needs no masks; the state holds Σ τ and the largest and the smallest entries, so it is
    exact one expert at a time.
    """

    name: ClassVar[str] = "emr"
    source: ClassVar[str] = "Huang et al. 2024, EMR-Merging (arXiv 2405.17461), section 3.2"
    state: ClassVar[tuple[str, ...]] = ("sum", "highest", "lowest")

    scale: float = 1.0
    """λ."""

    @override
    def update(self, state: State, x: Array, expert: Expert) -> None:
        state["sum"] += x
        np.maximum(state["highest"], x, out=state["highest"])
        np.minimum(state["lowest"], x, out=state["lowest"])

    @override
    def finalise(self, state: State, summary: Summary) -> Array:
        elected: Array = np.where(state["sum"] > 0, state["highest"], state["lowest"])
        elected *= self.scale
        return elected
