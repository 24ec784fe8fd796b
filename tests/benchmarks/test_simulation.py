"""The simulation's arithmetic, on cases small enough to be done by hand."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
from simulate import ASSUMED, MEASURED, CountedModel, nodes, planned
from simulation import Costs, Machine, Outcome, Shared, SimulatedNode, Site, run

FREE = Costs(flow=0, worker=0, record=0, hashed=math.inf, sent=math.inf, fetched=math.inf, message=0)


def machine(wire: float = math.inf, cores: float = 1) -> Machine:
    return Machine(Shared(wire), Shared(cores, 1), Shared(1, 1))


def site(costs: Costs = FREE, cell_workers: int = 1, workers: int = 0, store: float = math.inf, **one: Any) -> Site:
    return Site(costs, machine(**one), Shared(store), cell_workers, [machine(**one) for _ in range(workers)])


def node(
    name: str, seconds: float, inputs: Mapping[str, float] = {}, outputs: Mapping[str, float] = {}
) -> SimulatedNode:
    return SimulatedNode("train", name, seconds, dict(inputs), dict(outputs))


def simulated(cells: list[list[SimulatedNode]], where: Site) -> Outcome:
    return run([[step] for step in cells], where)


def test_nodes_of_a_cell_follow_each_other_and_a_cell_worker_takes_one_cell_at_a_time() -> None:
    cells = [[node("a", 3), node("b", 4)], [node("c", 5)]]
    assert simulated(cells, site()).seconds == pytest.approx(3 + 4 + 5)


def test_cell_workers_share_what_computes() -> None:
    # Both at half speed until c has its 5 seconds, at 10; a and b have had 5 of their 7 by then.
    cells = [[node("a", 3), node("b", 4)], [node("c", 5)]]
    assert simulated(cells, site(cell_workers=2)).seconds == pytest.approx(10 + 2)


def test_workers_run_cells_side_by_side() -> None:
    cells = [[node("a", 3), node("b", 4)], [node("c", 5)]]
    out = simulated(cells, site(cell_workers=2, workers=2))
    assert out.seconds == pytest.approx(7)
    assert out.work == 12
    assert out.shares["what computes"] == pytest.approx(12 / (2 * 7))


def test_a_cell_waits_for_an_idle_worker() -> None:
    assert simulated([[node("a", 3)], [node("b", 4)]], site(cell_workers=2, workers=1)).seconds == pytest.approx(7)


def test_equal_nodes_are_computed_once_and_waited_for() -> None:
    out = simulated([[node("same", 3), node("a", 1)], [node("same", 3), node("b", 2)]], site(cell_workers=2, workers=2))
    assert out.nodes == 3
    assert out.work == 6
    assert out.seconds == pytest.approx(5)
    assert sum(out.spent.values()) == pytest.approx(4 + 5)  # the wait too


def test_what_a_node_costs_beside_its_work() -> None:
    costs = Costs(flow=1, worker=2, record=4, hashed=10, sent=math.inf, fetched=math.inf, message=7)
    alone = simulated([[node("a", 3, outputs={"x": 50})]], site(costs))
    assert alone.seconds == pytest.approx(1 + 3 + 50 / 10 + 4)
    sent = simulated([[node("a", 3, outputs={"x": 50})]], site(costs, workers=1))
    assert sent.seconds == pytest.approx(1 + 2 + 3 + 50 / 10 + 4)
    assert (alone.through_scheduler, sent.through_scheduler) == (0, 7)


def test_bytes_go_to_the_worker_and_back_through_the_store() -> None:
    out = simulated([[node("a", 3, {"in": 100}, {"out": 50})]], site(workers=1, wire=10, store=20))
    assert out.seconds == pytest.approx(100 / 10 + 100 / 10 + 3 + 50 / 10 + 50 / 10)
    assert out.through_store == 100 + 100 + 50 + 50
    assert out.through_flow == 100 + 50
    assert out.stored == 150


def test_what_has_been_somewhere_is_not_sent_there_again() -> None:
    steps = [[node("a", 1, {"in": 100}, {"out": 50})], [node("b", 1, {"in": 100, "out": 50})]]
    out = run([steps], site(workers=2, wire=10))  # the second goes where the first was
    assert out.through_store == 100 + 100 + 50 + 50
    assert out.states == 2


def test_who_uses_a_wire_at_the_same_time_shares_it() -> None:
    cells = [[node("a", 0, {"x": 100})], [node("b", 0, {"y": 300})]]
    # To the store: 5 a second each until x is there, at 20, then y's last 200 at 10 a second, until 40. From the store
    # each has its own worker's wire: y 30 seconds more.
    out = simulated(cells, site(cell_workers=2, workers=2, wire=10))
    assert out.seconds == pytest.approx(40 + 30)


def divisible(name: str) -> SimulatedNode:
    tests = {f"{name} {number}": 30.0 for number in range(3)}
    return SimulatedNode("evaluate", name, 6, {f"{name} weights": 100, **tests}, {}, list(tests))


def test_workers_divide_a_node_and_each_fetches_its_share() -> None:
    costs = Costs(flow=1, worker=5, record=0, hashed=math.inf, sent=math.inf, fetched=math.inf, message=7)
    out = simulated([[divisible("a")]], site(costs, cell_workers=2, workers=2, wire=10))
    # All inputs to the store; then two pieces on one worker, while the other needs 3 + 2 seconds less for its one.
    assert out.seconds == pytest.approx(1 + 190 / 10 + (160 / 10 + 5 + 4))
    assert out.through_store == 190 + 160 + 130
    assert (out.nodes, out.jobs, out.work, out.through_scheduler) == (1, 2, pytest.approx(6), 2 * 7)
    assert sum(out.spent.values()) == pytest.approx(out.seconds)


@pytest.mark.parametrize(("cells", "seconds"), [(1, 2), (2, 4), (3, 6), (5, 12)])
def test_cells_have_as_many_workers_each(cells: int, seconds: float) -> None:
    # 4 workers: 3 pieces on 3 of them; 2 + 1 on two for each cell; one for each cell; and the last one waits.
    steps = [[divisible(f"cell {number}")] for number in range(cells)]
    assert simulated(steps, site(cell_workers=4, workers=4)).seconds == pytest.approx(seconds)


def test_clients_are_no_faster_than_they_are() -> None:
    slow = Costs(flow=0, worker=0, record=0, hashed=math.inf, sent=5, fetched=20, message=0)
    out = simulated([[node("a", 0, {"x": 100})]], site(slow, workers=1, wire=10))
    assert out.seconds == pytest.approx(100 / 5 + 100 / 10)
    assert out.spent == {"sending": 20, "fetching": 10, "train": 0, "beside": 0, "recording": 0}


def test_cores_serve_each_request_on_one() -> None:
    costs = Costs(flow=6, worker=0, record=0, hashed=math.inf, sent=math.inf, fetched=math.inf, message=0)
    cells = [[node(name, 0)] for name in "abc"]
    assert simulated(cells, site(costs, cell_workers=1, cores=4)).seconds == pytest.approx(18)
    assert simulated(cells, site(costs, cell_workers=3, cores=2)).seconds == pytest.approx(9)


MODEL = CountedModel("two parameters", 2, flops=6e12, training=0, evaluation=0)


def step_of(init: str, deploy: str, technique: str, step: int) -> dict[str, SimulatedNode]:
    cell = next(one for one in planned(3, [technique]) if (one.init, one.deploy) == (init, deploy))
    return {one.kind: one for one in nodes(cell, 3, MODEL, ASSUMED, MEASURED)[step]}


def test_what_nodes_read_and_make() -> None:
    third = step_of("ema", "ema", "linear", 3)
    arrival = ASSUMED.train / 3 * 3 * 224**2
    assert sorted(third["train"].inputs.values()) == [8, arrival, arrival, arrival]  # the running model, all arrivals
    assert list(third["train"].outputs.values()) == [8]
    assert third["train"].seconds == pytest.approx(28_400 // 3 * 6e12 / ASSUMED.gpu)
    assert list(third["deploy"].inputs.values()) == [8, 8, 8, 8]  # base, expert, running model; the new expert
    assert list(third["deploy"].outputs.values()) == [8]


def test_deploying_all_hands_on_a_running_state_or_every_expert() -> None:
    sequential, batch = (step_of("zs", "all", technique, 3)["deploy"] for technique in ("task_arithmetic", "karcher"))
    assert list(sequential.outputs.values()) == [8, 8]  # one array: the sum of the task vectors
    assert len(batch.outputs) == 1
    assert len(batch.inputs) == 1 + 2 + 1  # base, both earlier experts, the new one
