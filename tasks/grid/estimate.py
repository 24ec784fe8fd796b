"""How long a grid will take and how much it will store, estimated from recorded states."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from tasks import layout
from tasks.grid.plan import KINDS, Plan
from tasks.record import Manifest


@dataclass(frozen=True)
class MeasuredCosts:
    """Medians over recorded states, in seconds and bytes."""

    step: float
    """One training step."""
    training: float
    """One training, for budgets that are not given in steps."""
    deploy: float
    evaluate: float
    beside: float | None
    """All else that a step takes on the clock: inputs, preparing, hashing, the push; None of old states."""
    expert: int
    merged: int
    """The outputs of a merge: the deployed model and the running state, counted once if they are equal."""


@dataclass(frozen=True)
class Estimate:
    """The cost of the pending work of a grid."""

    seconds: float
    """Of steps one after another; less on the clock where several cell workers run side by side."""
    bytes: int
    complete: bool
    """Whether ``seconds`` counts what steps take beside their nodes."""


def measured(manifests: Iterable[Manifest]) -> MeasuredCosts | None:
    """Medians over the manifests of states; None if no training has been recorded."""
    recorded = [one for one in manifests if one.seconds.keys() >= set(KINDS)]
    trained = [one for one in recorded if one.budget.steps]
    merged = [one for one in recorded if one.step]
    if not trained or not merged:
        return None

    def middle(of: Iterable[Manifest], value: Callable[[Manifest], float]) -> float:
        return median(map(value, of))

    def stored(one: Manifest) -> int:
        sizes = {one.output(path).md5: one.output(path).size for path in (layout.DEPLOYED, layout.RUNNING)}
        return sum(sizes.values())

    return MeasuredCosts(
        step=middle(trained, lambda one: one.seconds["train"] / one.budget.steps),
        training=middle(trained, lambda one: one.seconds["train"]),
        deploy=middle(merged, lambda one: one.seconds["deploy"]),
        evaluate=middle(recorded, lambda one: one.seconds["evaluate"]),
        beside=_beside(recorded),
        expert=int(middle(recorded, lambda one: one.stored_expert.size)),
        merged=int(middle(merged, stored)),
    )


def _beside(manifests: Iterable[Manifest]) -> float | None:
    """The median over states of what their steps took beside the `KINDS` of work that ran in them."""
    runs: set[tuple[str, float]] = set()
    seconds_beside = []
    for one in sorted(manifests, key=lambda one: one.recorded.at):
        # Runs have no name of their own; two of one node do not take equal milliseconds.
        ran = {(kind, one.seconds[kind]) for kind in KINDS} - runs
        runs |= ran
        if one.elapsed is not None:
            seconds_beside.append(max(0.0, one.elapsed - sum(seconds for _, seconds in ran)))
    return median(seconds_beside) if seconds_beside else None


def estimate(plan: Plan, known: MeasuredCosts) -> Estimate:
    """Time and bytes of the pending work."""
    trainings, merges, evaluations = (plan.pending(kind) for kind in ("train", "deploy", "evaluate"))
    seconds = sum(work.steps * known.step or known.training for work in trainings)
    seconds += len(merges) * known.deploy + len(evaluations) * known.evaluate
    seconds += plan.states * (known.beside or 0.0)
    written = len(trainings) * known.expert + len(merges) * known.merged
    return Estimate(seconds, written, complete=known.beside is not None)
