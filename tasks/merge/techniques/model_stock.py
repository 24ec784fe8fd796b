"""Model Stock: the closer the experts agree, the closer to their mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from typing_extensions import override

from tasks.merge.sequential import Accumulator, Expert, State, Summary
from tasks.merge.stream import Piece, Window
from tasks.merge.types import Array


class ModelStock(Accumulator):
    """r·mean(θ_k) + (1−r)·θ_0 per tensor; r = N c / (1 + (N−1) c), c the mean cosine between pairs of task vectors.

    r is clamped to [0, 1]: it has no bound as c falls to −1/(N−1). Cosines are averaged, as in mergekit (fusion_bench
    averages angles). c comes from the sum of unit task vectors, Σ_{i≠j} û_i·û_j = ‖Σ û‖² − N, without forming pairs.

    The batch form has ‖Σ û‖² from the experts' inner products, in one pass; the sequential form from Σ û in float32:
    their r differ by less than 1e-6, and nothing else does.
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
        ratio = self.ratio(summary.count, summary.moved, summary.squares["unit"])
        return state["sum"] * (ratio / summary.count)

    @override
    def plan(self, window: Window) -> Callable[[Piece], Array]:
        factors: dict[str, float] = {}
        for group, gram in window.gram().items():
            norms = np.sqrt(np.diag(gram))
            inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
            square = float(inverse @ gram @ inverse)
            factors[group] = self.ratio(len(norms), int(np.count_nonzero(norms)), square) / len(norms)

        def merged(piece: Piece) -> Array:
            total = piece.vector(0)
            for i in range(1, piece.count):
                total += piece.vector(i)
            total *= factors[piece.tensor.group]
            return total

        return merged

    @staticmethod
    def ratio(count: int, moved: int, square: float) -> float:
        """r of ``count`` experts; ``moved`` of them have a task vector, and ``square`` is ‖Σ û‖². 1 for one expert."""
        if count == 1:
            return 1.0
        # A task vector of zero has no direction: its cosines count as 0, and it adds nothing to ‖Σ û‖².
        cosine = (square - moved) / (count * (count - 1))
        if cosine <= 0:
            return 0.0
        return min(1.0, count * cosine / (1 + (count - 1) * cosine))
