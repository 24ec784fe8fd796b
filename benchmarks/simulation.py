"""The cells of a grid on many machines, as events: who computes what when, and what goes over which wire.

Nothing here measures, and nothing is random: costs come in, times and bytes come out. `simulate.py` makes the costs and
prints what comes out of them.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(eq=False)
class Shared:
    """Serves all who ask at the same time alike: ``rate`` units a second in all, and each at ``each`` at most.

    A wire (bytes), or a machine's cores (seconds of processors, each request on one core).
    """

    rate: float
    each: float = math.inf
    total: float = 0.0
    """Units asked for so far."""
    _asking: list[tuple[float, int, Waiting]] = field(default_factory=list)
    """By what everyone's share must have come to when they are served."""
    _share: float = 0.0
    """Units that a request would have got that has been here from the start."""
    _at: float = 0.0

    def ask(self, now: float, units: float, number: int, request: Waiting) -> bool:
        """Whether this takes time."""
        self.total += units
        if not units or min(self.rate, self.each) == math.inf:
            return False
        self._pass(now)
        heapq.heappush(self._asking, (self._share + units, number, request))
        return True

    def served(self, now: float) -> list[Waiting]:
        """Those that have all they asked for."""
        self._pass(now)
        done = []
        while self._asking and self._asking[0][0] <= self._share * (1 + 1e-12) + 1e-12:
            done.append(heapq.heappop(self._asking)[2])
        return done

    def next(self) -> float:
        """When somebody will have been served, if nobody else asks."""
        return self._at + max(0.0, self._asking[0][0] - self._share) / self._pace() if self._asking else math.inf

    def _pace(self) -> float:
        return min(self.each, self.rate / len(self._asking))

    def _pass(self, now: float) -> None:
        if self._asking:
            self._share += (now - self._at) * self._pace()
        self._at = now


@dataclass(eq=False)
class Waiting:
    """What a process waits for: all of some demands."""

    process: Process
    open: int


@dataclass(frozen=True)
class SimulatedNode:
    """A node of a step of a cell."""

    kind: str
    name: Hashable
    """Nodes of equal name have equal results: one cell computes, the others wait for it and take what it made."""
    seconds: float
    """Its own work."""
    inputs: Mapping[Hashable, float]
    outputs: Mapping[Hashable, float]
    """Objects and their bytes."""
    pieces: Sequence[Hashable] = ()
    """Inputs among which its work can be divided, as much for each; only of nodes without outputs."""

    def parts(self, count: int) -> list[SimulatedNode]:
        """At most ``count``, each with as many pieces as the others or one less; itself where that is one."""
        count = min(count, len(self.pieces))
        if count < 2:
            return [self]
        return [self._part(self.pieces[number::count]) for number in range(count)]

    def _part(self, pieces: Sequence[Hashable]) -> SimulatedNode:
        spared = set(self.pieces) - set(pieces)
        inputs = {key: size for key, size in self.inputs.items() if key not in spared}
        return replace(self, seconds=self.seconds * len(pieces) / len(self.pieces), inputs=inputs, pieces=pieces)


@dataclass(frozen=True)
class Costs:
    """What there is beside the nodes' own work and the bytes on the wires; seconds are those of one core."""

    flow: float
    """On the flow's machine, for each node that is computed."""
    worker: float
    """On the worker, for each node or part of one."""
    record: float
    """On the flow's machine, for each state."""
    hashed: float
    """Bytes a second: a node's outputs, where they are made."""
    sent: float
    fetched: float
    """Bytes a second that one client moves to and from the store, hashes too, however fast the wires are."""
    message: float
    """Bytes through the scheduler for each node or part of one."""


@dataclass(eq=False)
class Machine:
    """A machine with a cache, in which stays whatever has been there."""

    wire: Shared
    cores: Shared
    device: Shared
    """Where nodes compute: its cores, or its GPU (seconds)."""
    has: set[Hashable] = field(default_factory=set)


@dataclass
class Site:
    """The flow's machine with its cell workers, a store, and workers; without workers, nodes run in the cell workers.

    No more cell workers run than there are cells, and each divides its nodes among its part of the workers.
    """

    costs: Costs
    flow: Machine
    store: Shared
    cell_workers: int
    workers: list[Machine] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What a simulated grid took."""

    seconds: float
    work: float
    """Of nodes, each result once."""
    nodes: int
    """How many were computed."""
    jobs: int
    """The same, with each part of a divided one."""
    states: int
    stored: float
    """Bytes in the store at the end."""
    through_store: float
    through_flow: float
    """Bytes over the wires of the store and of the flow's machine."""
    through_scheduler: float
    shares: Mapping[str, float]
    """How busy each was, from 0 to 1: those that compute, the flow's cores, its wire, the store's."""
    spent: Mapping[str, float]
    """Where the cells spent their time, in seconds, all of them together: in nodes by their kind, ``beside`` them, in
    ``sending`` and ``fetching``, waiting until there is ``no idle worker``, in ``recording``."""


Queue = deque["Process"]
Demands = Sequence[tuple[Shared, float]]
Process = Generator[Demands | Queue, None, None]
"""Yields what it needs before it goes on, or a queue that it waits in until somebody wakes it."""


def run(cells: Sequence[Sequence[Sequence[SimulatedNode]]], site: Site) -> Outcome:
    """Simulate cells (each a sequence of steps, each a sequence of nodes) until all are recorded."""
    return _Run(cells, site).play()


@dataclass(eq=False)
class _Cell:
    steps: Sequence[Sequence[SimulatedNode]]
    worker: Machine | None = None
    """That ran its last whole node."""
    spent: dict[str, float] = field(default_factory=dict)


class _Run:
    def __init__(self, cells: Sequence[Sequence[Sequence[SimulatedNode]]], site: Site):
        self.cells, self.site, self.costs = cells, site, site.costs
        self.now, self.asked = 0.0, 0
        self.active: dict[int, Shared] = {}
        """Those that anybody asks something of now, by their identity."""
        self.sending = Shared(math.inf, self.costs.sent)
        self.fetching = Shared(math.inf, self.costs.fetched)
        self.ready: deque[Process] = deque()
        self.made: dict[Hashable, Queue | None] = {}
        """By name of a node: who waits while it is computed; None once it has been."""
        self.took: dict[Hashable, dict[str, float]] = {}
        """By name of a node: where the cell that computed it spent its time for it."""
        self.cell_workers, self.idle = min(site.cell_workers, len(cells)), deque(site.workers)
        self.workers_each = len(site.workers) // self.cell_workers
        """For each cell at work."""
        self.for_cell_worker: Queue = deque()
        self.for_worker: Queue = deque()
        self.stored: dict[Hashable, float] = {}
        self.messages = self.work = 0.0
        self.jobs = 0
        self.spent: dict[str, float] = {}

    def play(self) -> Outcome:
        self.ready.extend(self._cell(_Cell(steps)) for steps in self.cells)
        while True:
            while self.ready:
                self._advance(self.ready.popleft())
            if not self.active:
                return self._outcome()
            self.now = min(one.next() for one in self.active.values())
            self._serve()

    def _advance(self, process: Process) -> None:
        needed = next(process, None)
        if isinstance(needed, deque):
            needed.append(process)
        elif needed is not None:
            request = Waiting(process, len(needed))
            for shared, units in needed:
                self.asked += 1
                if shared.ask(self.now, units, self.asked, request):
                    self.active[id(shared)] = shared
                else:
                    self._granted(request)

    def _serve(self) -> None:
        for shared in list(self.active.values()):
            if shared.next() <= self.now:
                for request in shared.served(self.now):
                    self._granted(request)
                if shared.next() == math.inf:
                    del self.active[id(shared)]

    def _granted(self, request: Waiting) -> None:
        request.open -= 1
        if not request.open:
            self.ready.append(request.process)

    def _outcome(self) -> Outcome:
        site, flow, seconds = self.site, self.site.flow, self.now
        devices = {id(machine.device): machine.device.rate for machine in site.workers or [flow]}
        shares = {
            "what computes": self.work / sum(devices.values()) / seconds,
            "the flow's cores": flow.cores.total / flow.cores.rate / seconds,
            "the flow's wire": flow.wire.total / flow.wire.rate / seconds,
            "the store's wire": site.store.total / site.store.rate / seconds,
        }
        return Outcome(
            seconds, self.work, len(self.made), self.jobs, sum(map(len, self.cells)), sum(self.stored.values()),
            site.store.total, flow.wire.total, self.messages, shares, self.spent,
        )  # fmt: skip

    def _cell(self, cell: _Cell) -> Process:
        while not self.cell_workers:
            yield self.for_cell_worker
        self.cell_workers -= 1
        for step in cell.steps:
            for node in step:
                yield from self._once(node, cell)
            for objects in (objects for node in step for objects in (node.inputs, node.outputs)):
                yield from self._spent("sending", cell, self._send(self.site.flow, objects))
            yield from self._spent("recording", cell, _asking([(self.site.flow.cores, self.costs.record)]))
        self.cell_workers += 1
        _add(self.spent, cell.spent)
        self._wake(self.for_cell_worker)

    def _once(self, node: SimulatedNode, cell: _Cell) -> Process:
        """Compute a node; or wait for the cell that does, with its time counted as that cell spends it."""
        if node.name in self.made:
            if (queue := self.made[node.name]) is not None:
                started = self.now
                yield queue
                self._spent_as(self.took[node.name], cell, started)
            return
        queue = self.made[node.name] = deque()
        before = dict(cell.spent)
        yield from self._spent("beside", cell, _asking([(self.site.flow.cores, self.costs.flow)]))
        if self.site.workers:
            yield from self._elsewhere(node, cell)
        else:
            yield from self._compute(self.site.flow, node, cell)
        self.took[node.name] = {what: seconds - before.get(what, 0.0) for what, seconds in cell.spent.items()}
        self.made[node.name] = None
        self._wake(queue)

    def _elsewhere(self, node: SimulatedNode, cell: _Cell) -> Process:
        yield from self._spent("sending", cell, self._send(self.site.flow, node.inputs))
        parts = node.parts(self.workers_each)
        if len(parts) > 1:
            yield from self._divided(parts, cell)
        else:
            yield from self._on_worker(node, cell)
            yield from self._spent("fetching", cell, self._fetch(self.site.flow, node.outputs))

    def _divided(self, parts: Sequence[SimulatedNode], cell: _Cell) -> Process:
        """All parts at the same time; the cell's time is counted as the parts have spent theirs."""
        started, took = self.now, [_Cell(()) for _ in parts]
        at_work = list(took)
        joined: Queue = deque()
        self.ready.extend(self._part(part, own, at_work, joined) for part, own in zip(parts, took, strict=True))
        yield joined
        together: dict[str, float] = {}
        for own in took:
            _add(together, own.spent)
        self._spent_as(together, cell, started)

    def _part(self, part: SimulatedNode, own: _Cell, at_work: list[_Cell], joined: Queue) -> Process:
        yield from self._on_worker(part, own)
        at_work.remove(own)
        if not at_work:
            self._wake(joined)

    def _on_worker(self, node: SimulatedNode, cell: _Cell) -> Process:
        """On the one that ran the cell's last whole node, if it is idle, else on the one that has been idle longest."""
        while not self.idle:
            yield from self._spent("no idle worker", cell, _waiting(self.for_worker))
        worker = cell.worker if cell.worker and cell.worker in self.idle else self.idle[0]
        self.idle.remove(worker)
        cell.worker = worker
        self.messages += self.costs.message
        yield from self._spent("fetching", cell, self._fetch(worker, node.inputs))
        yield from self._spent("beside", cell, _asking([(worker.cores, self.costs.worker)]))
        yield from self._compute(worker, node, cell)
        yield from self._spent("sending", cell, self._send(worker, node.outputs))
        self.idle.append(worker)
        self._wake(self.for_worker)

    def _compute(self, machine: Machine, node: SimulatedNode, cell: _Cell) -> Process:
        yield from self._spent(node.kind, cell, _asking([(machine.device, node.seconds)]))
        self.work += node.seconds
        self.jobs += 1
        machine.has |= node.outputs.keys()
        hashing = sum(node.outputs.values()) / self.costs.hashed
        yield from self._spent("beside", cell, _asking([(machine.cores, hashing)]))

    def _send(self, machine: Machine, objects: Mapping[Hashable, float]) -> Process:
        """What the store lacks of some objects, from a machine that has them."""
        absent = {key: size for key, size in objects.items() if key not in self.stored}
        self.stored |= absent
        machine.has |= absent.keys()
        yield from self._carry(machine, sum(absent.values()), self.sending)

    def _fetch(self, machine: Machine, objects: Mapping[Hashable, float]) -> Process:
        """What a machine lacks of some objects, from the store."""
        absent = sum(size for key, size in objects.items() if key not in machine.has)
        machine.has |= objects.keys()
        yield from self._carry(machine, absent, self.fetching)

    def _carry(self, machine: Machine, size: float, by: Shared) -> Process:
        if size:
            yield [(machine.wire, size), (self.site.store, size), (by, size)]

    def _spent(self, what: str, cell: _Cell, process: Process) -> Process:
        started = self.now
        yield from process
        _add(cell.spent, {what: self.now - started})

    def _spent_as(self, took: Mapping[str, float], cell: _Cell, started: float) -> None:
        """Count a cell's time since it started to wait as others have spent theirs."""
        part = (self.now - started) / (sum(took.values()) or 1)
        _add(cell.spent, {what: part * seconds for what, seconds in took.items()})

    def _wake(self, queue: Queue) -> None:
        self.ready.extend(queue)
        queue.clear()


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for what, amount in more.items():
        sums[what] = sums.get(what, 0.0) + amount


def _asking(demands: Demands) -> Process:
    yield demands


def _waiting(queue: Queue) -> Process:
    yield queue
