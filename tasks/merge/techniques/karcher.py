"""The mean of models as directions on a sphere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tasks.merge.sequential import Accumulator, Expert, State, Summary
from tasks.merge.stream import Piece, Window
from tasks.merge.technique import Weighted
from tasks.merge.types import Array

_ALIKE = 1e-7


class Karcher(Weighted, Accumulator):
    """The weighted Riemannian mean of θ_k/‖θ_k‖ per tensor, times the weighted mean of the norms.

    The mean stays in the span of the models, so all iterations work on their Gram matrix: two passes over the models,
    however many iterations. With iterations 0 it is one step, the normalized Σ w_k θ_k/‖θ_k‖, which has a sequential
    form.
    """

    name: ClassVar[str] = "karcher"
    source: ClassVar[str] = "Karcher 1977; on weights as in mergekit (arXiv 2603.04972)"
    relative: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ("direction",)
    state_norms: ClassVar[tuple[str, ...]] = ("direction",)

    normalize: bool = True
    iterations: int = Field(default=10, ge=0)
    """At most so many; it stops where the mean moves by less than tolerance."""
    tolerance: float = Field(default=1e-5, gt=0)

    @property
    def normalizes(self) -> bool:
        return True  # a mean of directions divides by the sum, whatever the setting

    @property
    def needs_norms(self) -> bool:
        return True

    @property
    def sequential(self) -> bool:
        return super().sequential and self.iterations == 0

    def update(self, state: State, x: Array, expert: Expert) -> None:
        if expert.norm:
            x *= expert.weight / expert.norm
            state["direction"] += x

    def finalise(self, state: State, summary: Summary) -> Array:
        length = math.sqrt(summary.squares["direction"])
        norm = summary.norms / summary.total if self.normalize else summary.norms
        return state["direction"] * (norm / length if length else 0.0)

    @classmethod
    def by_part(cls) -> tuple[str, ...]:
        return ("weight",)

    def plan(self, window: Window) -> Callable[[Piece], Array]:
        if self.iterations == 0:
            return super().plan(window)
        weights = {group: np.array(window.weights_of(tensor)) for group, tensor in window.first.items()}
        factors = {group: self.factors(gram, weights[group]) for group, gram in window.gram().items()}

        def merged(piece: Piece) -> Array:
            total = piece.zeros()
            for i, factor in enumerate(factors[piece.tensor.group].tolist()):
                x = piece.vector(i)
                x *= factor
                total += x
            return total

        return merged

    def factors(self, gram: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of each model in the mean, from the models' inner products (models, models)."""
        norms = np.sqrt(np.diag(gram))
        directed = norms > 0
        inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=directed)
        cosines = gram * np.outer(inverse, inverse)
        shares = weights / weights.sum()
        scale = float((shares if self.normalize else weights) @ norms)
        shares = np.where(directed, shares, 0.0)

        def unit(a: NDArray[np.float64]) -> NDArray[np.float64]:
            length = math.sqrt(max(0.0, float(a @ cosines @ a)))
            return a / length if length > _ALIKE else a

        mean = unit(shares)  # coefficients of the unit vectors
        for _ in range(self.iterations):
            dots = np.clip(cosines @ mean, -1.0, 1.0)
            angles = np.arccos(dots)
            ratio = np.where(angles > _ALIKE, angles / np.maximum(np.sin(angles), _ALIKE), 1.0)
            tangent = shares * ratio - float(shares @ (ratio * dots)) * mean
            length = math.sqrt(max(0.0, float(tangent @ cosines @ tangent)))
            if length < self.tolerance:
                break
            mean = unit(math.cos(length) * mean + math.sin(length) / length * tangent)
        factors: NDArray[np.float64] = mean * inverse * scale
        return factors
