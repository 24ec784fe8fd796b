"""How long a grid will take and how much it will store, estimated from recorded states."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

import numpy as np

from tasks import layout
from tasks.grid.plan import KINDS, Plan, Work
from tasks.grid.reporting import ReportTime
from tasks.record import Manifest
from tasks.units import counted, duration


@dataclass(frozen=True)
class MeasuredCosts:
    """Medians over recorded states, in seconds and bytes.

    Of each, those states count that were recorded in a number of cell workers nearest to the one that is planned:
    workers side by side share the cores, the store and the Prefect server, so each is slower than one alone.
    """

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
    first: float | None
    """The same of the first step of a run, or of a cell worker: it loads libraries and finds nothing in memory."""
    starting: float | None
    """The start of a run: its store, servers and cell workers; None of old states."""
    workers: int
    """In how many cell workers the states were recorded that ``beside`` is the median of; 1 of old states."""
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
    workers: int
    """In how many cell workers the states were recorded that the estimate is made of."""


@dataclass(frozen=True)
class _Step:
    """What the recording of one state took."""

    manifest: Manifest
    ran: frozenset[str]
    """Of `KINDS` those that ran in it; results of the others were there."""
    workers: int
    """Cell workers that were recording states meanwhile, this one among them: their mean over the step."""

    @property
    def beside(self) -> float | None:
        """Seconds on the clock beside those of ``ran``, without the start of the run."""
        one = self.manifest
        if one.elapsed is None:
            return None
        return max(0.0, one.elapsed - (one.starting or 0.0) - sum(one.seconds[kind] for kind in self.ran))


def measured(manifests: Iterable[Manifest], workers: int = 1) -> MeasuredCosts | None:
    """Medians over the manifests of states, for a grid in ``workers``; None if no training has been recorded."""
    recorded = [one for one in manifests if one.seconds.keys() >= set(KINDS)]
    trained = [one for one in recorded if one.budget.steps]
    merged = [one for one in recorded if one.step]
    if not trained or not merged:
        return None

    steps = _steps(recorded)

    def nearest(value: Callable[[_Step], float | None]) -> float | None:
        return _nearest([(one.workers, number) for one in steps if (number := value(one)) is not None], workers)

    def ran(kind: str, where: Callable[[Manifest], object], value: Callable[[Manifest], float]) -> float | None:
        return nearest(lambda one: value(one.manifest) if kind in one.ran and where(one.manifest) else None)

    def took(kind: str, where: Callable[[Manifest], object] = lambda _: True) -> float:
        near = ran(kind, where, lambda one: one.seconds[kind])
        return median(one.seconds[kind] for one in recorded if where(one)) if near is None else near

    def pace(where: Callable[[Manifest], object]) -> float | None:
        return ran(
            "train", lambda one: one.budget.steps and where(one), lambda one: one.seconds["train"] / one.budget.steps
        )

    def stored(one: Manifest) -> int:
        sizes = {entry.md5: entry.size for entry in (one.deployed, one.output(layout.RUNNING))}
        return sum(sizes.values())

    bases, experts = pace(lambda one: not one.step), pace(lambda one: one.step)
    later = [one for one in steps if one.beside is not None and one.manifest.starting is None]
    return MeasuredCosts(
        base_step=bases or experts or 0.0,
        step=experts or bases or 0.0,
        training=took("train", lambda one: one.budget.steps),
        deploy=took("deploy", lambda one: one.step),
        evaluate=took("evaluate"),
        beside=nearest(lambda one: one.beside if one in later or not later else None),
        first=nearest(lambda one: one.beside if one not in later else None),
        starting=nearest(lambda one: one.manifest.starting),
        workers=min((one.workers for one in later or steps), key=lambda count: abs(count - workers)),
        expert=int(median(one.stored_expert.size for one in recorded)),
        merged=int(median(map(stored, merged))),
    )


def time_of_steps(count: int, manifests: Iterable[Manifest]) -> str:
    """How long a timeline's next steps take, by the median of those that it has recorded, in words."""
    took = [one.elapsed - (one.starting or 0.0) for one in manifests if one.step and one.elapsed is not None]
    if not took:
        return f"time for {counted(count, 'step')}: not known before step 1 is recorded"
    return f"time for {counted(count, 'step')}: about {duration(count * median(took))}, as the recorded ones took"


def _steps(manifests: Iterable[Manifest]) -> list[_Step]:
    """What was recorded, by time: which work ran in each step, and beside how many steps of other timelines."""
    ordered = sorted(manifests, key=lambda one: one.recorded.at)
    ends = np.array([datetime.fromisoformat(one.recorded.at).timestamp() for one in ordered])
    lasted = np.array([(one.elapsed or 0.0) - (one.starting or 0.0) for one in ordered])
    timelines = np.array([one.timeline for one in ordered])
    known: set[tuple[str, float]] = set()
    steps = []
    for number, one in enumerate(ordered):
        # Runs have no name of their own; two of one node do not take equal milliseconds.
        ran = {(kind, one.seconds[kind]) for kind in KINDS} - known
        known |= ran
        common = np.minimum(ends, ends[number]) - np.maximum(ends - lasted, ends[number] - lasted[number])
        beside = float(common.clip(0)[timelines != one.timeline].sum() / lasted[number]) if lasted[number] > 0 else 0.0
        steps.append(_Step(one, frozenset(kind for kind, _ in ran), 1 + round(beside)))
    return steps


def _nearest(values: Sequence[tuple[int, float]], workers: int) -> float | None:
    """The median of the values that have the number of ``workers`` nearest to the one asked for."""
    distance = min((abs(count - workers) for count, _ in values), default=None)
    return median(value for count, value in values if abs(count - workers) == distance) if values else None


def estimate(plan: Plan, known: MeasuredCosts, parallel: int = 1, report: ReportTime | None = None) -> Estimate:
    """Time of the pending work in ``parallel`` cell workers, its bytes, and what the ``report`` took, if known.

    A grid without pending work writes no report.
    """
    written = len(plan.pending("train")) * known.expert + len(plan.pending("deploy")) * known.merged
    complete = known.beside is not None and known.starting is not None
    starting = (known.starting or 0.0) if plan.steps else 0.0
    seconds = starting + _worked(plan, known, parallel)
    if not plan.steps:
        return Estimate(seconds, written, 0.0, ends=True, complete=complete, workers=known.workers)
    ends = report is not None and report.kind == "grid"
    return Estimate(seconds, written, report.seconds if report else None, ends, complete, known.workers)


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
    cold = set(range(parallel))
    """Workers that have recorded no step yet."""
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
            now += (known.first if number in cold and known.first is not None else known.beside) or 0.0
            cold.discard(number)
        heapq.heappush(workers, (now, number, works))
    return end


def _seconds(work: Work, known: MeasuredCosts) -> float:
    if work.kind == "train":
        return work.steps * (known.step if work.step else known.base_step) or known.training
    return {"deploy": known.deploy, "evaluate": known.evaluate}[work.kind]
