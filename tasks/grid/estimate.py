"""How long a grid will take, and how much it will store, from what recorded states have measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from tasks import layout
from tasks.grid.plan import Plan
from tasks.record import Manifest


@dataclass(frozen=True)
class Measured:
    """Medians over recorded states, in seconds and bytes."""

    step: float
    """One training step."""
    training: float
    """One training, for budgets that do not say their steps."""
    deploy: float
    evaluate: float
    expert: int
    merged: int
    """What a merge leaves: the deployed model and the running state, each content once."""


@dataclass(frozen=True)
class Estimate:
    """Of the pending work of a grid."""

    seconds: float
    """Of nodes at work; side by side in several lanes less on the clock."""
    bytes: int


def measured(manifests: Iterable[Manifest]) -> Measured | None:
    """What the manifests of states say; None where no training has been recorded."""
    recorded = list(manifests)
    trained = [one for one in recorded if one.budget.steps]
    merged = [one for one in recorded if one.step]
    if not trained or not merged:
        return None

    def middle(of: Iterable[Manifest], value: Callable[[Manifest], float]) -> float:
        return median(map(value, of))

    def stored(one: Manifest) -> int:
        kept = {one.outputs[path].md5: one.outputs[path].size for path in (layout.DEPLOYED, layout.RUNNING)}
        return sum(kept.values())

    return Measured(
        step=middle(trained, lambda one: one.seconds["train"] / one.budget.steps),
        training=middle(trained, lambda one: one.seconds["train"]),
        deploy=middle(merged, lambda one: one.seconds["deploy"]),
        evaluate=middle(recorded, lambda one: one.seconds["evaluate"]),
        expert=int(middle(recorded, lambda one: one.outputs[layout.EXPERT].size)),
        merged=int(middle(merged, stored)),
    )


def estimate(plan: Plan, known: Measured) -> Estimate:
    """Time and bytes of what is pending."""
    trainings, merges, evaluations = (plan.pending(kind) for kind in ("train", "deploy", "evaluate"))
    seconds = sum(work.steps * known.step or known.training for work in trainings)
    seconds += len(merges) * known.deploy + len(evaluations) * known.evaluate
    return Estimate(seconds, len(trainings) * known.expert + len(merges) * known.merged)
