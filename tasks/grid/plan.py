"""The work of a grid, computed before it runs: which cells share which results.

Every model of every cell has a name, made of its inputs: the base of the params that train it, an expert of its initial
weights, data, recipe and seed, a merged model of its technique and inputs. Equal names mean equal results, so each
distinct name is computed once. This mirrors the keys of `tasks.nodes`, without the content of files.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field

from tasks.grid.cells import Planned
from tasks.params import Params, Train

KINDS = ("train", "deploy", "evaluate")
"""The expensive nodes: trainings, merges and evaluations."""


@dataclass(frozen=True)
class Work:
    """One node of one step of one cell."""

    timeline: str
    step: int
    kind: str
    name: int
    """Equal for works with equal results."""
    steps: int = 0
    """Training steps, if the budget gives them without a measurement; else 0."""


@dataclass(frozen=True)
class Plan:
    """All work of a grid."""

    works: tuple[Work, ...]
    done: frozenset[int] = frozenset()
    """Names of the results in recorded states."""
    steps: tuple[tuple[str, int], ...] = ()
    """Timeline and step of the states that are to be recorded, in the order of the cells."""

    def separate(self, kind: str) -> int:
        """How often a node would run if cells shared nothing."""
        return sum(work.kind == kind for work in self.works)

    def shared(self, kind: str) -> list[Work]:
        """The works if equal results are computed once: one for each name."""
        return list({work.name: work for work in self.works if work.kind == kind}.values())

    def pending(self, kind: str) -> list[Work]:
        """The works of `shared` whose result is in no recorded state."""
        return [work for work in self.shared(kind) if work.name not in self.done]


def plan(cells: Iterable[Planned], recorded: Collection[tuple[str, int]] = ()) -> Plan:
    """The plan of a grid; ``recorded`` are the (timeline, step) pairs of existing states."""
    names = _Names()
    works = tuple(work for one in cells for work in _of_cell(one, names))
    steps = dict.fromkeys((work.timeline, work.step) for work in works)
    done = frozenset(work.name for work in works if (work.timeline, work.step) in recorded)
    return Plan(works, done, tuple(step for step in steps if step not in recorded))


@dataclass
class _Names:
    """Numbers for tuples, equal for equal ones: so names that contain names stay short."""

    known: dict[Hashable, int] = field(default_factory=dict)

    def __call__(self, *parts: Hashable) -> int:
        return self.known.setdefault(parts, len(self.known))


def _of_cell(planned: Planned, names: _Names) -> Iterator[Work]:
    params, timeline = planned.params, planned.cell.timeline
    time, technique = params.time, _fingerprint(params.time.technique.model_dump(mode="json"))
    machine = names("machine", params.threads)
    pools = names("pretraining", _fingerprint([params.base.pretraining, params.seed]))
    base = running = expert = names("given", _base(params))
    held = handed = names("nothing")
    experts: tuple[int, ...] = ()
    for step in range(len(params.stream) + 1):
        arrival = params.stream[step - 1] if step else None
        arrived = names("arrival", _fingerprint(arrival.model_dump(mode="json") if arrival else None), params.seed)
        data = names("data", pools, arrived, held)
        if arrival is None:
            trained = params.base.pretrained == "train"
            shared = params.train.model_dump(mode="json", exclude=set(Train.OF_EXPERTS))
            recipe = _fingerprint([params.base.train, shared])
        else:
            trained = arrival.expert is None
            recipe = _fingerprint([params.train, params.store.experts])  # a codec stores the expert as it trains
        start = {"zs": base, "ft": expert, "ema": running}[time.init] if step else base
        expert = names("expert", start, data, recipe, params.seed, step, machine) if trained else names("given", data)
        if trained:
            yield Work(timeline, step, "train", expert, _training_steps(params, step))
        if params.train.regularizer:
            held = expert  # its importances depend on all earlier trainings
        if step:
            experts = (*experts, expert)
        else:
            base = expert
        if time.uses_ema:
            first = step == 0 or (step == 1 and time.ema_start == "first-expert")
            running = expert if first else names("ema", technique, params.seed, expert, running, base)
        everything = names("all", technique, params.seed, base, experts)
        routes = names("routed", base, experts, _fingerprint(params.deploy), pools, arrived)
        deployed = {"ft": expert, "ema": running, "all": everything, "routed": routes}[time.deploy] if step else expert
        if {running if time.uses_ema else expert, deployed} != {expert}:
            yield Work(timeline, step, "deploy", names("deploy", handed, expert, _fingerprint(time), params.seed, step))
        yield Work(timeline, step, "evaluate", names("evaluate", deployed, _fingerprint(params.evaluate), machine))
        handed = names("handed", handed, expert, running)
        pools = names("past", pools, arrived, step)


def _base(params: Params) -> str:
    """The name of a base as given; one that is trained starts from the seed."""
    return _fingerprint([params.base.model, params.base.pretrained, params.seed])


def _training_steps(params: Params, step: int) -> int:
    if step == 0:
        return params.base.train.steps if params.base.train else 0
    given = params.train.given
    return given.steps or (given.samples or 0) // params.train.batch_size


def _fingerprint(value: object) -> str:
    def plain(one: object) -> object:
        return one.model_dump(mode="json") if hasattr(one, "model_dump") else str(one)

    return json.dumps(value, sort_keys=True, default=plain)
