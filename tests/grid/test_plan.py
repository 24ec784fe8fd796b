"""How much work a grid is: sharing counted by hand for small grids, and its bound for large ones."""

from pathlib import Path
from typing import Any

import pytest

from tasks.grid import cells, estimate, plan
from tasks.params import Grid
from tasks.record.manifest import Manifest
from tasks.storage.cache import Entry
from tests import manifests
from tests.grid.test_cells import text
from tests.project import PARAMS

STREAM = [{"name": f"task-{t}", "update": [f"images:drawings/{t}#train"]} for t in range(1, 8)]
EIGHT = ["linear", "task_arithmetic", "ties", "dare_ties", "breadcrumbs_ties", "magmax", "model_stock", "karcher"]


def planned(params: str, recorded: Any = (), **grid: Any) -> plan.Plan:
    made = cells.expand(params, Grid.model_validate({"references": [], **grid}), Path("project"))
    return plan.plan(made, recorded)


def counts(found: plan.Plan) -> dict[str, tuple[int, int]]:
    return {kind: (found.separate(kind), len(found.shared(kind))) for kind in plan.KINDS}


def test_two_steps_by_hand() -> None:
    # Trainings: the base; step 1, where every init is the base; step 2 from the base, from θ_1 and from EMA_1.
    # Merges: seven protocols, at each of two steps. Evaluations: the base; at step 1 θ_1 (deploy ft), EMA_1 (deploy
    # ema) and the merge of all; at step 2 each of eight models, but that deploy ft of init ft is no merge.
    found = counts(planned(text()))
    assert found["train"] == (8 * 3, 1 + 1 + 3)
    assert found["deploy"] == (7 * 2, 7 * 2)
    assert found["evaluate"] == (8 * 3, 1 + 3 + 8)


def test_experts_of_zs_and_ft_are_trained_once_for_all_techniques() -> None:
    steps = len(STREAM)
    found = counts(planned(text(stream=STREAM), technique=EIGHT))
    separate, shared = found["train"]
    assert separate == (7 * 8 + 1) * (steps + 1)
    assert shared == 1 + 1 + (2 + 8) * (steps - 1)
    assert shared <= (2 + 8) * steps


def test_seeds_share_nothing() -> None:
    assert counts(planned(text(), seed=[0, 1, 2]))["train"][1] == 3 * counts(planned(text()))["train"][1]


def test_first_expert_starts_the_recursion_one_step_later() -> None:
    base = planned(text(), init=["ema"], deploy=["ema"])
    first = planned(text(time={"ema_start": "first-expert"}), init=["ema"], deploy=["ema"])
    assert counts(base)["deploy"] == (2, 2)
    assert counts(first)["deploy"] == (1, 1)  # EMA_1 is θ_1
    assert counts(first)["evaluate"] == (3, 3)


def test_a_regularizer_remembers_the_whole_chain() -> None:
    found = planned(text(train={**PARAMS["train"], "regularizer": "ewc"}), init=["zs"], deploy=["all", "ema"])
    assert counts(found)["train"] == (6, 3)
    chains = planned(text(train={**PARAMS["train"], "regularizer": "ewc"}), init=["zs", "ema"], deploy=["ema"])
    assert counts(chains)["train"] == (6, 1 + 1 + 2)


def test_variants_with_other_codecs_share_the_base_alone() -> None:
    stores = {"full": {}, "same": {"store": {"experts": "full"}}, "signs": {"store": {"experts": "signs"}}}
    found = counts(planned(text(), init=["ema"], deploy=["ema"], variants=stores))
    assert found["train"] == (3 * 3, 1 + 2 * 2)


def test_what_is_recorded_is_not_to_do() -> None:
    done = {("tiny-zs-ema-linear-s0", step) for step in range(3)}
    found = planned(text(), recorded=done, init=["zs"], deploy=["ema", "all"])
    assert [len(found.pending(kind)) for kind in plan.KINDS] == [0, 2, 2]


def test_an_expert_that_arrives_is_not_trained() -> None:
    stream = [{"name": "bought", "expert": "bought.safetensors"}]
    assert counts(planned(text(stream=stream), init=["zs"], deploy=["all"]))["train"] == (1, 1)


def manifest(step: int, train: float, steps: int, **others: Any) -> Manifest:
    sizes = {"expert.safetensors": 100, "deployed.safetensors": 100, "running": 150}
    outputs = {f"data/step/{name}": Entry(name, size) for name, size in sizes.items()}
    seconds = {"train": train, "deploy": 2.0, "evaluate": 3.0}
    made = manifests.content(step=step, budget={"steps": steps}, seconds=seconds, outputs=outputs, **others)
    return Manifest.model_validate(made)


def test_an_estimate_is_what_states_have_measured() -> None:
    known = estimate.measured([manifest(0, 16.0, 8), manifest(1, 12.0, 6)])
    assert known is not None
    assert known.step == 2.0
    found = planned(text(), init=["ft"], deploy=["ema"])
    made = estimate.estimate(found, known)
    assert made.seconds == pytest.approx((8 + 6 + 6) * 2.0 + 2 * 2.0 + 3 * 3.0)
    assert made.bytes == 3 * 100 + 2 * 250


def test_an_estimate_counts_what_steps_take_beside_their_nodes() -> None:
    first = manifest(0, 16.0, 8, elapsed=16 + 2 + 3 + 4.0)
    second = manifest(1, 12.0, 6, elapsed=12 + 4.0)  # its merge and evaluation are the first's: taken again
    for order in ([first, second], [second, first]):
        recorded = [
            one.model_copy(
                update={"recorded": one.recorded.model_copy(update={"at": f"2026-01-01T00:00:0{one.step}Z"})}
            )
            for one in order
        ]
        known = estimate.measured(recorded)
        assert known is not None
        assert known.beside == 4.0
    found = planned(text(), init=["ft"], deploy=["ema"])
    assert found.states == 3
    made = estimate.estimate(found, known)
    assert made.complete
    assert made.seconds == pytest.approx((8 + 6 + 6) * 2.0 + 2 * 2.0 + 3 * 3.0 + 3 * 4.0)
    recorded_before = planned(text(), {("tiny-ft-ema-linear-s0", 0)}, init=["ft"], deploy=["ema"])
    assert recorded_before.states == 2


def test_an_estimate_from_older_states_says_that_recording_is_not_in_it() -> None:
    known = estimate.measured([manifest(0, 16.0, 8), manifest(1, 12.0, 6)])
    assert known is not None
    assert not estimate.estimate(planned(text()), known).complete


def test_no_estimate_before_anything_was_measured() -> None:
    assert estimate.measured([]) is None
    assert estimate.measured([manifest(0, 16.0, 8)]) is None
