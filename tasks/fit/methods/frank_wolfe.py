"""Convex weights of models by Frank-Wolfe steps on a loss: a learned weight, and a filter of useless experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tasks.fit.landscape import Landscape, TaskVectors
from tasks.fit.learning import DIGITS, SCORED, LearnsWeights, means_of
from tasks.fit.method import Problem
from tasks.fit.methods.paint import golden
from tasks.merge import FitResult

SHRUNK = 0.1
"""The factor on the steps of the authors' code."""


@dataclass(frozen=True)
class Move:
    """One step: to which vertex, how far, and what the gap was before."""

    vertex: int
    gap: float
    size: float


class FrankWolfe(LearnsWeights):
    """Σ w_m θ_m over experts, running model and base, w convex: steps to the vertex with the least ⟨∇L, θ_m⟩.

    L is the cross-entropy on samples of the arrivals' pools and the pretraining pool, each pool counting once. The
    step's length has the least loss on held-out samples. The gap ⟨∇L, θ − s⟩ bounds what is still to gain where L is
    convex.
    """

    name: ClassVar[str] = "frank_wolfe"
    source: ClassVar[str] = "Chen et al. 2025, FW-Merging (arXiv 2503.12649)"

    variant: Literal["classic", "hard"] = "classic"
    """``hard`` is the authors' code: to the vertex with the least sum of cosines, by small steps of fixed length."""
    step: Literal["line_search", "harmonic"] = "line_search"
    """How far: to the least loss on held-out samples, or 2/(t+2), which forgets where it started. Not for ``hard``."""
    iterations: int = Field(default=10, gt=0)
    """At most."""
    samples: int = Field(default=100, gt=1)
    """Of each pool, for the gradient."""
    tolerance: float = Field(default=1e-3, ge=0)
    """The gap (nats) at which it stops."""
    search: int = Field(default=12, ge=3)
    """Lengths that a line search tries."""

    def fit(self, problem: Problem) -> tuple[FitResult, dict[str, Any]]:
        empty = problem.samples.require_held()
        base = ("base", problem.base.relative_to(problem.project))
        vertices = [*problem.models, base]
        files = [*problem.files(), problem.base]
        vectors = self.vectors(problem, files)
        known = problem.samples.pretraining
        pools = [*problem.samples.arrivals, *([known] if known else [])]
        landscape = Landscape(problem, vectors, pools, "cross_entropy")
        weights, moves = self._walk(problem, landscape, self._with_base(problem))
        scorer = self.scorer(problem)
        vectors.place(problem.model, _by_tensor(weights, vectors))
        scores = means_of(scorer.measure())
        result = FitResult(
            technique="linear",
            models=tuple(str(path) for _, path in vertices),
            weights=tuple(weights.round(DIGITS).tolist()),
        )
        reached = [name for name, _ in (vertices if self.variant == "classic" else [*problem.models, ("start", None)])]
        course = [
            {"to": reached[move.vertex], "gap": round(move.gap, DIGITS), "size": round(move.size, DIGITS)}
            for move in moves
        ]
        report = {
            "weights": dict(zip([name for name, _ in vertices], result.weights or (), strict=True)),
            "gap": course[-1]["gap"], "course": course, "scores": {"end": scores}, "samples": scorer.sizes,
            "without_samples": empty,
        }  # fmt: skip
        return result, report

    def _with_base(self, problem: Problem) -> np.ndarray:
        """Weights of the models and of the base, which has what is left of 1."""
        given = np.array(self.start(problem))
        if self.variant == "classic" and given.sum() > 1:
            given = given / given.sum()
        return np.array([*given, 1 - given.sum()])

    def _walk(self, problem: Problem, landscape: Landscape, start: np.ndarray) -> tuple[np.ndarray, list[Move]]:
        vectors = landscape.vectors

        def inner(weights: np.ndarray) -> np.ndarray:
            spread = _by_tensor(weights, vectors)
            landscape.gradient(spread, 0, self.samples)
            return vectors.inner(problem.model, spread).sum(axis=1)

        def cosines(vertices: np.ndarray) -> np.ndarray:
            return vectors.cosines(problem.model, vertices).sum(axis=1)

        def length(number: int, weights: np.ndarray, vertex: np.ndarray) -> float:
            problem.progress("fit", number + 1, self.iterations)
            if self.step == "harmonic":
                return 2 / (number + 2)

            def tried(size: float) -> dict[str, Any]:
                between = weights + size * (vertex - weights)
                return {"value": size, "loss": landscape.held_out(_by_tensor(between, vectors), SCORED)}

            return float(golden(tried, lambda point: point["loss"], 0.0, 1.0, self.search)["value"])

        if self.variant == "classic":
            return walk(start, np.eye(len(start)), inner, length, self.iterations, self.tolerance)
        scale = float(getattr(problem.technique, "scale", 1.0))
        return hard(start, inner, cosines, scale, self.iterations)


def walk(
    start: np.ndarray,
    vertices: np.ndarray,
    inner: Callable[[np.ndarray], np.ndarray],
    length: Callable[[int, np.ndarray, np.ndarray], float],
    iterations: int,
    tolerance: float,
) -> tuple[np.ndarray, list[Move]]:
    """Frank-Wolfe: weights (M,) and the moves.

    Args:
        start: convex weights of M models.
        vertices: each a row of weights, (V, M).
        inner: weights → ⟨∇L, θ_m⟩ of each model, (M,), with any constant added to all.
        length: (number of the move, weights, vertex) → how far to go to the vertex, from 0 to 1.
        iterations: at most so many moves.
        tolerance: it stops where ⟨∇L, θ − s⟩ is no more than this, or a move has length 0.
    """
    weights, moves = start, []
    for number in range(iterations):
        each = inner(weights)
        chosen = int(np.argmin(vertices @ each))
        gap = float(weights @ each - vertices[chosen] @ each)
        size = length(number, weights, vertices[chosen]) if gap > tolerance else 0.0
        moves.append(Move(chosen, gap, size))
        if size == 0:
            break
        weights = weights + size * (vertices[chosen] - weights)
    return weights, moves


def hard(
    start: np.ndarray,
    inner: Callable[[np.ndarray], np.ndarray],
    cosines: Callable[[np.ndarray], np.ndarray],
    scale: float,
    iterations: int,
) -> tuple[np.ndarray, list[Move]]:
    """The authors' hard form: to the vertex with the least Σ cos(∇L, θ) over tensors, by 0.1 · λ · 2/(t+2).

    Vertices are the models without the base, which is the last, and the start. Whole weights are nearly all alike, so
    that cosines tell little. Source: github.com/hmarkc/FW-Merging, discriminative/merge.py, per model.

    Args:
        cosines: vertices (V, M) → the sums of cosines (V,), with the gradient at the weights that ``inner`` had last.
        scale: λ of task arithmetic, which the start is; 1 where it is a mean.
    """
    weights, moves = start, []
    vertices = np.vstack([np.eye(len(start))[:-1], start])
    for number in range(iterations):
        each = inner(weights)
        chosen = int(np.argmin(cosines(vertices)))
        size = SHRUNK * scale * 2 / (number + 2)
        moves.append(Move(chosen, float(weights @ each - vertices[chosen] @ each), size))
        weights = weights + size * (vertices[chosen] - weights)
    return weights, moves


def _by_tensor(weights: np.ndarray, vectors: TaskVectors) -> np.ndarray:
    return np.repeat(weights[:, None], len(vectors.names), axis=1)
