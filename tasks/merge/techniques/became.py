"""BECAME: an EMA step whose coefficient follows from what the new and the old model know."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from tasks.merge.stream import Piece, Window
from tasks.merge.technique import Technique
from tasks.merge.types import Array, Scope


class Became(Technique):
    """(1 − λ)·old + λ·new, λ = Σ F_new δ² / Σ (F_new + F_old) δ², δ = new − old; the first model is the new one.

    λ is where the sum of both losses is least along the line between the models, each loss a parabola with the diagonal
    Fisher as its curvature. F_old is the sum over all earlier experts (a file's mean, times its
    ``experts``). Models that do not differ where a Fisher counts
    give λ = ½.
    """

    name: ClassVar[str] = "became"
    source: ClassVar[str] = "Li et al. 2025, BECAME (arXiv 2504.02666), the closed form of the merging coefficient"
    models: ClassVar[tuple[int, int | None]] = (2, 2)
    relative: ClassVar[bool] = False
    statistics: ClassVar[tuple[str, ...]] = ("fisher",)

    scope: Scope = "model"
    """One λ for the model, as in the paper, or for each tower or tensor."""

    @property
    def grouping(self) -> Scope:
        return self.scope

    @override
    def plan(self, window: Window) -> Callable[[Piece], Array]:
        new, old = window.measured

        def curvatures(piece: Piece) -> NDArray[np.float64]:
            squares = np.square(piece.vector(0) - piece.vector(1), dtype=np.float64).reshape(-1)
            lengths = [squares @ piece.fisher(one).reshape(-1).astype(np.float64) for one in (new, old)]
            return np.array([float(x) * one.facts.experts for x, one in zip(lengths, (new, old), strict=True)])

        shares: dict[str, float] = {}
        for group, (of_new, of_old) in window.reduce(curvatures).items():
            shares[group] = float(of_new / (of_new + of_old)) if of_new + of_old > 0 else 0.5

        def merged(piece: Piece) -> Array:
            share = piece.tensor.precision(shares[piece.tensor.group])
            old_weights = piece.vector(1)
            moved = piece.vector(0)
            moved -= old_weights
            moved *= share
            moved += old_weights
            return moved

        return merged
