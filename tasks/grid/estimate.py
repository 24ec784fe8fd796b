"""How long a grid will take and how much it will store, estimated from recorded states."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from tasks import layout
from tasks.grid.plan import KINDS, Plan, Work
from tasks.grid.reporting import ReportTime
from tasks.record import Manifest
from tasks.units import counted, duration


@dataclass(frozen=True)
class MeasuredCosts:
    """Medians over recorded states, in seconds and bytes."""

    base_step: float
    """One training step of a base."""
    step: float
    """One training step of an expert."""
    training: float
    """One training, for budgets that are not given in steps."""
    deploy: float
    evaluate: float
    beside: float | None
    """All else that a step takes on the clock: inputs, preparing, hashing, the push; None of old states.

    Counted from the end of the step before, so that nothing is left out between two steps.
    """
    starting: float | None
    """The start of a run: its store, servers and cell workers; None of old states."""
    expert: int
    merged: int
    """The outputs of a merge: the deployed model and the running state, counted once if they are equal."""


@dataclass(frozen=True)
class Estimate:
    """The cost of the pending work of a grid."""

    seconds: float
    """On the clock, from the start of the grid until its last state is in the store."""
    bytes: int
    report: float | None
    """Seconds of what follows, the end of the servers and the report; not part of ``seconds``.

    None where no report was written on this machine.
    """
    ends: bool
    """Whether ``report`` counts the end of the servers, which the end of a grid has measured."""
    complete: bool
    """Whether ``seconds`` counts the start, and what steps take beside their nodes."""


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
        sizes = {entry.md5: entry.size for entry in (one.deployed, one.output(layout.RUNNING))}
        return sum(sizes.values())

    def paces(of: Iterable[Manifest]) -> list[float]:
        return [one.seconds["train"] / one.budget.steps for one in of]

    bases, experts = paces(one for one in trained if not one.step), paces(one for one in trained if one.step)
    starts = [one.starting for one in recorded if one.starting is not None]
    return MeasuredCosts(
        base_step=median(bases or experts),
        step=median(experts or bases),
        training=middle(trained, lambda one: one.seconds["train"]),
        deploy=middle(merged, lambda one: one.seconds["deploy"]),
        evaluate=middle(recorded, lambda one: one.seconds["evaluate"]),
        beside=_beside(recorded),
        starting=median(starts) if starts else None,
        expert=int(middle(recorded, lambda one: one.stored_expert.size)),
        merged=int(middle(merged, stored)),
    )


def time_of_steps(count: int, manifests: Iterable[Manifest]) -> str:
    """How long a timeline's next steps take, by the median of those that it has recorded, in words."""
    took = [one.elapsed - (one.starting or 0.0) for one in manifests if one.step and one.elapsed is not None]
    if not took:
        return f"time for {counted(count, 'step')}: not known before step 1 is recorded"
    return f"time for {counted(count, 'step')}: about {duration(count * median(took))}, as the recorded ones took"


def _beside(manifests: Iterable[Manifest]) -> float | None:
    """The median over states of what their steps took beside the `KINDS` of work that ran in them."""
    runs: set[tuple[str, float]] = set()
    seconds_beside = []
    for one in sorted(manifests, key=lambda one: one.recorded.at):
        # Runs have no name of their own; two of one node do not take equal milliseconds.
        ran = {(kind, one.seconds[kind]) for kind in KINDS} - runs
        runs |= ran
        if one.elapsed is not None:
            nodes = sum(seconds for _, seconds in ran)
            seconds_beside.append(max(0.0, one.elapsed - (one.starting or 0.0) - nodes))
    return median(seconds_beside) if seconds_beside else None


def estimate(plan: Plan, known: MeasuredCosts, parallel: int = 1, report: ReportTime | None = None) -> Estimate:
    """Time of the pending work in ``parallel`` cell workers, its bytes, and what the ``report`` took, if known.

    A grid without pending work writes no report.
    """
    written = len(plan.pending("train")) * known.expert + len(plan.pending("deploy")) * known.merged
    complete = known.beside is not None and known.starting is not None
    starting = (known.starting or 0.0) if plan.steps else 0.0
    seconds = starting + _worked(plan, known, parallel)
    if not plan.steps:
        return Estimate(seconds, written, 0.0, ends=True, complete=complete)
    ends = report is not None and report.kind == "grid"
    return Estimate(seconds, written, report.seconds if report else None, ends, complete)


def _worked(plan: Plan, known: MeasuredCosts, parallel: int) -> float:
    """Seconds until the last cell worker ends.

    Each takes the next cell when it is free. What another has made it takes at once, and for what another is making it
    waits, as the grid does.
    """
    pending = set(plan.steps)
    of_cell: dict[str, deque[Work]] = {}
    for work in plan.works:
        if (work.timeline, work.step) in pending:
            of_cell.setdefault(work.timeline, deque()).append(work)
    cells = deque(of_cell.values())
    made = dict.fromkeys(plan.done, 0.0)
    """Name of a result → when it is there."""
    workers: list[tuple[float, int, deque[Work]]] = [(0.0, number, deque()) for number in range(parallel)]
    end = 0.0
    while workers:
        now, number, works = heapq.heappop(workers)  # the earliest, so a result that is not in `made` is nobody's yet
        end = max(end, now)
        if not works:
            if not cells:
                continue
            works = cells.popleft()
        work = works.popleft()
        now = max(now, made.setdefault(work.name, now + _seconds(work, known)))
        if work.kind == "evaluate":  # the last of its step
            now += known.beside or 0.0
        heapq.heappush(workers, (now, number, works))
    return end


def _seconds(work: Work, known: MeasuredCosts) -> float:
    if work.kind == "train":
        return work.steps * (known.step if work.step else known.base_step) or known.training
    return {"deploy": known.deploy, "evaluate": known.evaluate}[work.kind]
