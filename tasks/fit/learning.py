"""What methods have in common that learn the weights of models: where they start, by what they learn, what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from tasks.errors import UserError
from tasks.fit.landscape import TaskVectors
from tasks.fit.method import FitMethod, Problem
from tasks.fit.scores import Scorer, scorer_of
from tasks.merge import Technique
from tasks.params import Params

DIGITS = 8
"""Decimals of a coefficient."""
SCORED = 256
"""Held-out samples of a pool, at most."""
Course = list[dict[str, float]]
"""What was seen at each look at the held-out samples."""
Learned = TypeVar("Learned")


class LearnsWeights(FitMethod):
    """A method that starts from the weights that the technique gives each model."""

    @override
    def check(self, params: Params, technique: Technique) -> list[str]:
        if technique.name not in ("linear", "task_arithmetic") or technique.parts or technique.lines:
            raise UserError(
                f"fit: {self.name} learns the weights of task vectors; set time.technique to linear or "
                "task_arithmetic, without parts and lines (it says where they start)"
            )
        return []

    def vectors(self, problem: Problem, files: Sequence[Any], *, elect: bool = False) -> TaskVectors:
        """The task vectors of models in files, by the parameters of the problem's model."""
        names = [name for name, _ in problem.model.named_parameters()]
        return TaskVectors(problem.base, files, names, elect=elect)

    def start(self, problem: Problem) -> list[float]:
        """The weight of each model: λ for task arithmetic, where a running model stays whole."""
        count = len(problem.models)
        if problem.technique.name == "task_arithmetic":
            scale = float(problem.technique.scale)  # type: ignore[attr-defined]
            return [scale, 1.0] if problem.params.time.deploy == "ema" else [scale] * count
        chosen = problem.technique.weights(2) if problem.params.time.deploy == "ema" else [1.0] * count
        return [weight / sum(chosen) for weight in chosen]

    def scorer(self, problem: Problem) -> Scorer:
        return scorer_of(problem, SCORED)


class LearnsByEntropy(LearnsWeights):
    """A method that lowers the entropy of what the merged model predicts for the arrivals' samples, without labels.

    The gradient is of the samples that are trained on. It stops where the entropy of held-out samples no longer falls,
    and takes what it had where that was least.
    """

    lr: float = Field(default=1e-3, gt=0)
    """Adam's learning rate."""
    iterations: int = Field(default=500, gt=0)
    """At most."""
    batch_size: int = Field(default=16, gt=1)
    """Samples of each pool in an iteration."""
    every: int = Field(default=25, gt=0)
    """Iterations between looks at the held-out samples."""
    patience: int = Field(default=4, gt=0)
    """Looks without a lower entropy after which it stops."""

    def descend(
        self,
        problem: Problem,
        step: Callable[[int], float],
        held_out: Callable[[], float],
        current: Callable[[], Learned],
    ) -> tuple[Learned, Course]:
        """What was learned where the entropy of held-out samples was least, and both entropies at each look.

        Args:
            step: the number of an iteration, from 1 → the entropy (nats) before it; changes what is learned.
            held_out: the entropy of held-out samples now.
            current: what is learned so far, a copy.
        """
        best, least, waited = current(), held_out(), 0
        course: Course = [{"iteration": 0, "held_out": round(least, DIGITS)}]
        entropies: list[float] = []
        for number in range(1, self.iterations + 1):
            entropies.append(step(number))
            problem.progress("fit", number, self.iterations, f"entropy {entropies[-1]:.4f}")
            if number % self.every and number < self.iterations:
                continue
            held, mean = held_out(), float(np.mean(entropies))
            course.append({"iteration": number, "entropy": round(mean, DIGITS), "held_out": round(held, DIGITS)})
            entropies.clear()
            if held < least:
                best, least, waited = current(), held, 0
                continue
            waited += 1
            if waited >= self.patience:
                break
        return best, course


def means_of(scores: Mapping[str, Any]) -> dict[str, Any]:
    """A_KA, A_ZS and their geometric mean, out of what a `Scorer` gives."""
    return {key: value for key, value in scores.items() if key.startswith(("A_", "geo"))}
