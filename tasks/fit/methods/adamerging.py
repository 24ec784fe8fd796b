"""Coefficients for each task vector, or each of its tensors, by the entropy of what the merged model predicts."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from tasks.fit.landscape import TEMPERATURE, Landscape
from tasks.fit.learning import DIGITS, SCORED, Course, LearnsByEntropy, means_of
from tasks.fit.method import Problem
from tasks.merge import FitResult, merge
from tasks.merge.technique import Density


class Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980) in float64, with values kept from 0 to 1."""

    def __init__(self, start: np.ndarray, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.values = start.astype(np.float64)
        self._lr, self._betas, self._eps, self._count = lr, betas, eps, 0
        self._first, self._second = np.zeros_like(self.values), np.zeros_like(self.values)

    def step(self, gradient: np.ndarray) -> None:
        """Move against a gradient."""
        self._count += 1
        a, b = self._betas
        self._first += (1 - a) * (gradient - self._first)
        self._second += (1 - b) * (gradient**2 - self._second)
        first, second = self._first / (1 - a**self._count), self._second / (1 - b**self._count)
        self.values = np.clip(self.values - self._lr * first / (np.sqrt(second) + self._eps), 0.0, 1.0)


class AdaMerging(LearnsByEntropy):
    """θ_0 + Σ λ_k τ_k with the λ, from 0 to 1, that make the merged model surest of the arrivals' samples, unlabelled.

    The entropy is that of the classes' probabilities, over the samples that are trained on. It stops where the entropy
    of held-out samples no longer falls, and takes the λ where that was least. With deploy: ema there are two models,
    the expert and the running one.
    """

    name: ClassVar[str] = "adamerging"
    source: ClassVar[str] = "Yang et al. 2024, AdaMerging (arXiv 2310.02575)"

    by: Literal["tensor", "model"] = "tensor"
    """One coefficient for each tensor of each model, or one for each model."""
    trim: Density | None = None
    """AdaMerging++: the share of each task vector's largest entries that stays (0.2); signs are elected as in TIES."""

    def fit(self, problem: Problem) -> tuple[FitResult, dict[str, Any]]:
        empty = problem.samples.require_held()
        files = problem.files()
        if self.trim is not None:
            files = [self._trimmed(problem, number, path) for number, path in enumerate(files)]
        vectors = self.vectors(problem, files, elect=self.trim is not None)
        landscape = Landscape(problem, vectors, problem.samples.arrivals, "entropy")
        start = np.repeat(np.array(self.start(problem))[:, None], len(vectors.names), axis=1)
        learned = np.array([name not in TEMPERATURE for name in vectors.names])
        best, course = self._descend(problem, landscape, start, learned)

        scorer = self.scorer(problem)
        scores = {}
        for when, values in (("start", start), ("end", best)):
            vectors.place(problem.model, values)
            scores[when] = means_of(scorer.measure())
        own = {name: best[:, i] for i, name in enumerate(vectors.names) if self.by == "tensor" or not learned[i]}
        weights = best[:, learned].mean(axis=1)
        result = FitResult(
            technique="task_arithmetic" if self.trim is None else "ties",
            settings={"scale": 1.0} if self.trim is None else {**self._ties, "scale": 1.0},
            models=tuple(str(path) for _, path in problem.models),
            weights=tuple(weights.round(DIGITS).tolist()),
            tensors={name: tuple(values.round(DIGITS).tolist()) for name, values in own.items()},
        )
        report = {
            "weights": dict(zip([name for name, _ in problem.models], result.weights or (), strict=True)),
            "course": course, "scores": scores, "samples": scorer.sizes, "without_samples": empty,
        }  # fmt: skip
        return result, report

    def _descend(
        self, problem: Problem, landscape: Landscape, start: np.ndarray, learned: np.ndarray
    ) -> tuple[np.ndarray, Course]:
        """The coefficients with the least entropy on held-out samples, and both entropies at each look."""
        shared = self.by == "model"
        adam = Adam(start.mean(axis=1) if shared else start, self.lr)

        def values() -> np.ndarray:
            spread = np.repeat(adam.values[:, None], start.shape[1], axis=1) if shared else adam.values
            return np.where(learned[None, :], spread, start).round(DIGITS)

        def step(number: int) -> float:
            now = values()
            entropy = landscape.gradient(now, number, self.batch_size)
            gradient = landscape.vectors.inner(problem.model, now)
            gradient[:, ~learned] = 0
            adam.step(gradient.sum(axis=1) if shared else gradient)
            return entropy

        return self.descend(problem, step, lambda: landscape.held_out(values(), SCORED), values)

    @property
    def _ties(self) -> dict[str, Any]:
        return {"density": self.trim, "scope": "model", "normalize": False}

    def _trimmed(self, problem: Problem, number: int, path: Any) -> Any:
        out = problem.scratch / f"trimmed-{number}.safetensors"
        merge("ties", [path], problem.base, out, settings=self._ties, threads=problem.params.threads)
        return out
