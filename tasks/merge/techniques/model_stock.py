"""Model Stock: the closer the experts agree, the closer to their mean."""

from __future__ import annotations

from typing import ClassVar

from tasks.merge.technique import Accumulator, Array, Expert, State, Summary


class ModelStock(Accumulator):
    """r·mean(θ_k) + (1−r)·θ_0 per tensor; r = N c / (1 + (N−1) c), c the mean cosine between pairs of task vectors.

    r is clamped to [0, 1]: it has no bound as c falls to −1/(N−1). Cosines are averaged, as in mergekit (fusion_bench
    averages angles). c comes from the sum of unit task vectors, Σ_{i≠j} û_i·û_j = ‖Σ û‖² − N, without forming pairs.
    """

    name: ClassVar[str] = "model_stock"
    source: ClassVar[str] = "Jang et al. 2024, Model Stock (arXiv 2403.19522), equation 5"
    state: ClassVar[tuple[str, ...]] = ("unit", "sum")
    state_norms: ClassVar[tuple[str, ...]] = ("unit",)

    @property
    def needs_norms(self) -> bool:
        return True

    def update(self, state: State, x: Array, expert: Expert) -> None:
        state["sum"] += x
        if expert.norm:
            x /= expert.norm
            state["unit"] += x

    def finalise(self, state: State, summary: Summary) -> Array:
        return state["sum"] * (self.ratio(summary) / summary.count)

    @staticmethod
    def ratio(summary: Summary) -> float:
        """r; 1 for a single expert."""
        n = summary.count
        if n == 1:
            return 1.0
        # A task vector of zero has no direction: its cosines count as 0, and it adds nothing to ‖Σ û‖².
        cosine = (summary.squares["unit"] - summary.moved) / (n * (n - 1))
        if cosine <= 0:
            return 0.0
        return min(1.0, n * cosine / (1 + (n - 1) * cosine))
