"""How much work a grid is: sharing counted by hand for small grids, and its bound for large ones."""

from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.grid import cells, estimate, plan, reporting
from tasks.params import Grid
from tasks.record.manifest import Manifest
from tasks.report import summary
from tasks.storage.cache import Entry
from tests import manifests
from tests.grid.test_cells import text
from tests.project import PARAMS
from tests.report.test_summary import clocked

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
    assert len(found.steps) == 3
    made = estimate.estimate(found, known)
    assert made.seconds == pytest.approx((8 + 6 + 6) * 2.0 + 2 * 2.0 + 3 * 3.0 + 3 * 4.0)
    recorded_before = planned(text(), {("tiny-ft-ema-linear-s0", 0)}, init=["ft"], deploy=["ema"])
    assert len(recorded_before.steps) == 2


def costs(**changes: float) -> estimate.MeasuredCosts:
    seconds = {"base_step": 3.0, "step": 2.0, "training": 99.0, "deploy": 5.0, "evaluate": 7.0, "beside": 4.0}
    others = {"first": seconds["beside"], "starting": 10.0, "workers": 1, "expert": 1, "merged": 1}
    return estimate.MeasuredCosts(**seconds | others | changes)  # type: ignore[arg-type]


def at(second: int, timeline: str, **others: Any) -> Manifest:
    """The manifest of a step that ended at this second of a minute."""
    recorded = {"at": f"2026-01-01T00:00:{second:02}+00:00", "host": "somewhere"}
    return manifest(timeline=timeline, recorded=recorded, **others)


def test_states_that_were_recorded_in_as_many_cell_workers_count() -> None:
    alone = [at(10, "a", step=0, train=1.0, steps=1, elapsed=1 + 2 + 3 + 4.0),
             at(18, "a", step=1, train=2.0, steps=1, elapsed=2 + 4.0)]  # fmt: skip
    both = [
        at(40 + 9 * step, name, step=step, train=3.0 + 2 * step + number, steps=1, elapsed=9.0)
        for number, name in enumerate("bc") for step in (0, 1)
    ]  # fmt: skip
    known = [estimate.measured([*alone, *both], workers) for workers in (1, 2, 8)]
    assert [one and one.workers for one in known] == [1, 2, 2]
    assert [one and one.step for one in known] == [2.0, 5.5, 5.5]
    assert [one and one.beside for one in known] == [4.0, 4.5, 4.5]


def test_the_first_step_of_a_cell_worker_takes_longer() -> None:
    first = manifest(0, 16.0, 8, elapsed=9 + 16 + 2 + 3 + 20.0, starting=9.0)
    known = estimate.measured([first, manifest(1, 12.0, 6, elapsed=12 + 4.0)])
    assert known is not None
    assert (known.first, known.beside) == (20.0, 4.0)
    found = planned(text(), init=["ft"], deploy=["ema"])
    assert estimate.estimate(found, costs(first=24.0)).seconds == estimate.estimate(found, costs()).seconds + 20


def test_an_estimate_counts_the_start_once() -> None:
    first = manifest(0, 16.0, 8, elapsed=9 + 16 + 2 + 3 + 4.0, starting=9.0)
    known = estimate.measured([first, manifest(1, 12.0, 6, elapsed=12 + 4.0)])
    assert known is not None
    assert (known.starting, known.beside) == (9.0, 4.0)
    found = planned(text(), init=["ft"], deploy=["ema", "all"])
    with_start, without = (estimate.estimate(found, costs(starting=starting)) for starting in (10.0, 0.0))
    assert with_start.complete
    assert with_start.seconds == pytest.approx(without.seconds + 10)
    done = {("tiny-ft-ema-linear-s0", step) for step in range(3)}
    nothing = planned(text(), done, init=["ft"], deploy=["ema"])
    assert estimate.estimate(nothing, costs()).seconds == 0


def test_the_base_and_the_experts_have_paces_of_their_own() -> None:
    known = estimate.measured([manifest(0, 24.0, 8), manifest(1, 12.0, 6)])
    assert known is not None
    assert (known.base_step, known.step) == (3.0, 2.0)


def test_a_cell_worker_waits_for_what_another_is_making() -> None:
    # By hand, in seconds. Base: 8 · 3 + 7 + 4 = 35; a step of ft + ema: 6 · 2 + 5 + 7 + 4 = 28.
    alone = planned(text(), init=["ft"], deploy=["ema"])
    assert estimate.estimate(alone, costs()).seconds == 10 + 35 + 2 * 28
    # The cell of deploy all shares the base, its evaluation and the trainings; merges and evaluations are its own.
    both = planned(text(), init=["ft"], deploy=["ema", "all"])
    second = 4 + 2 * (5 + 7 + 4)
    assert estimate.estimate(both, costs()).seconds == 10 + 35 + 2 * 28 + second
    # At the same time: each waits for what the other is making, and both end together.
    assert estimate.estimate(both, costs(), parallel=2).seconds == 10 + 35 + 2 * 28


def test_one_long_cell_is_as_long_in_many_cell_workers() -> None:
    found = planned(text(), seed=[0, 1], init=["ft"], deploy=["ft"], references=["multitask"])
    # multitask: the base, then twice 6 steps at once; ft + ft: the base (shared), then twice 6 steps.
    multitask, chain = 35 + (12 * 2 + 7 + 4), 2 * (6 * 2 + 7 + 4)
    assert estimate.estimate(found, costs(), parallel=2).seconds == 10 + multitask + 4 + chain
    assert estimate.estimate(found, costs(), parallel=9).seconds == 10 + 35 + chain


def test_an_estimate_from_older_states_says_that_recording_is_not_in_it() -> None:
    known = estimate.measured([manifest(0, 16.0, 8), manifest(1, 12.0, 6)])
    assert known is not None
    assert not estimate.estimate(planned(text()), known).complete


def test_no_estimate_before_anything_was_measured() -> None:
    assert estimate.measured([]) is None
    assert estimate.measured([manifest(0, 16.0, 8)]) is None


def end(states: int, seconds: float, kind: reporting.Kind = "grid") -> reporting.ReportTime:
    return reporting.ReportTime(states, seconds, kind)


def test_the_end_of_a_grid_is_that_of_a_grid_of_about_as_many_states(tmp_path: Path) -> None:
    assert reporting.of_states(tmp_path, 4) is None
    for states, seconds in ((4, 5.0), (40, 20.0), (4, 7.0)):
        reporting.note(tmp_path, end(states, seconds))
    found = [reporting.of_states(tmp_path, states) for states in (1, 6, 30, 400)]
    assert [one.seconds for one in found if one] == [7, 7, 20, 20]
    for _ in range(20):
        reporting.note(tmp_path, end(9, 1.0))
    assert reporting.of_states(tmp_path, 40) == end(9, 1.0)
    (tmp_path / ".chronomerge/reports.json").write_text("[{}]")
    with pytest.raises(UserError, match=r"reports\.json: is damaged .* remove it"):
        reporting.of_states(tmp_path, 4)


def test_a_report_alone_makes_no_plan_shorter(tmp_path: Path) -> None:
    reporting.note(tmp_path, end(4, 2.0, "report"))
    assert reporting.of_states(tmp_path, 4) == end(4, 2.0, "report")  # where no grid has ended yet
    reporting.note(tmp_path, end(40, 9.0))
    for _ in range(20):
        reporting.note(tmp_path, end(4, 2.0, "report"))
    assert reporting.of_states(tmp_path, 4) == end(40, 9.0)


def test_times_of_an_older_version_are_those_of_reports(tmp_path: Path) -> None:
    reporting.note(tmp_path, end(4, 2.0))
    (tmp_path / ".chronomerge/reports.json").write_text('[{"states": 4, "seconds": 3.0}]')
    assert reporting.of_states(tmp_path, 4) == end(4, 3.0, "report")


@pytest.mark.parametrize("known", [None, end(4, 3.0), end(4, 3.0, "report")])
def test_the_report_is_told_beside_the_work(known: reporting.ReportTime | None) -> None:
    found = planned(text())
    with_report, without = (estimate.estimate(found, costs(), report=one) for one in (known, None))
    assert (with_report.report, without.report) == (known and 3.0, None)
    assert with_report.ends == (known is not None and known.kind == "grid")
    assert with_report.seconds == without.seconds


def test_plan_page_and_clock_agree(tmp_path: Path) -> None:
    """Two cells side by side, in seconds since the command: figures of a small grid, the plan made before it ran."""
    reporting.note(tmp_path, end(6, 13.0))  # of an earlier grid
    for _ in range(reporting.KEPT):
        reporting.note(tmp_path, end(6, 3.0, "report"))
    known = costs(base_step=0.5, step=0.5, deploy=0.5, evaluate=1.0, beside=1.5, first=1.5, starting=6.0)
    both = planned(text(), init=["ft"], deploy=["ema", "all"])
    plan_of_both = estimate.estimate(both, known, 2, reporting.of_states(tmp_path, len(both.steps)))

    # Tag, seconds that the step took, and when it was recorded. Each worker's first step counts the start; the second
    # cell waits for what the first one trains.
    steps = [
        ("a/0", 13.2, 13.2), ("a/1", 6.4, 19.6), ("a/2", 6.3, 25.9),
        ("b/0", 14.0, 14.0), ("b/1", 6.6, 20.6), ("b/2", 6.2, 26.8),
    ]  # fmt: skip
    page = summary.on_the_clock(clocked(*steps))
    clock = 26.8 + 14.1  # the end of the servers, and the report
    assert plan_of_both.report is not None
    assert page is not None
    assert plan_of_both.seconds == pytest.approx(page, rel=0.3)
    assert plan_of_both.seconds + plan_of_both.report == pytest.approx(clock, rel=0.3)
    assert page + plan_of_both.report == pytest.approx(clock, rel=0.3)


RUN = (
    # A run, and two grids of two cells each: the first in one cell worker, the second in two. Timeline, step, seconds
    # after the first state, elapsed, starting; seconds of train, deploy and evaluate. On two busy cores.
    ("tiny", 0, 0, 76.855, 59.004, 1.115, 0.039, 0.23),
    ("tiny", 1, 10, 10.399, None, 0.597, 0.3, 0.32),
    ("tiny", 2, 21, 10.839, None, 0.638, 0.121, 0.276),
    ("tiny-zs-ema-linear-s0", 0, 138, 52.799, 44.947, 1.115, 0.009, 0.23),
    ("tiny-zs-ema-linear-s0", 1, 144, 6.219, None, 0.597, 0.1, 0.32),
    ("tiny-zs-ema-linear-s0", 2, 149, 5.605, None, 0.555, 0.085, 0.134),
    ("tiny-ema-ema-linear-s0", 0, 156, 4.62, None, 1.115, 0.039, 0.23),
    ("tiny-ema-ema-linear-s0", 1, 170, 13.221, None, 0.597, 0.3, 0.32),
    ("tiny-ema-ema-linear-s0", 2, 187, 17.196, None, 0.638, 0.121, 0.276),
    ("tiny-zs-ema-ties-s0", 0, 383, 90.069, 61.584, 1.115, 0.051, 0.23),
    ("tiny-zs-ema-ties-s0", 1, 399, 16.661, None, 0.597, 0.336, 1.164),
    ("tiny-zs-ema-ties-s0", 2, 414, 14.186, None, 0.555, 0.348, 1.109),
    ("tiny-ema-ema-ties-s0", 0, 385, 92.198, 61.584, 1.115, 0.049, 0.23),
    ("tiny-ema-ema-ties-s0", 1, 400, 14.93, None, 0.597, 0.472, 1.164),
    ("tiny-ema-ema-ties-s0", 2, 413, 13.262, None, 0.761, 0.454, 0.288),
)


def test_plan_and_page_agree_on_a_grid_that_was_recorded_in_two_cell_workers() -> None:
    def made(row: tuple[Any, ...]) -> Manifest:
        timeline, step, second, elapsed, starting, train, deploy, evaluate = row
        recorded = {"at": f"2026-11-27T23:{26 + second // 60:02}:{second % 60:02}+00:00", "host": "here"}
        one = manifest(
            step, train, 6 if step else 8, timeline=timeline, recorded=recorded, elapsed=elapsed, starting=starting
        )
        return one.model_copy(update={"seconds": {"train": train, "deploy": deploy, "evaluate": evaluate}})

    cells_of = {"init": ["zs", "ema"], "deploy": ["ema"], "technique": ["linear", "ties"]}
    pending = planned(text(), {(name, step) for name, step, *_ in RUN if "ties" not in name}, **cells_of)
    assert len(pending.steps) == 6
    page = summary.on_the_clock(clocked(*((f"{row[0]}/{row[1]}", row[3], row[2]) for row in RUN if "ties" in row[0])))
    before = estimate.measured([made(row) for row in RUN if "ties" not in row[0]], 2)
    after = estimate.measured([made(row) for row in RUN], 2)
    assert before is not None
    assert after is not None
    assert (before.workers, after.workers) == (1, 2)
    assert estimate.estimate(pending, after, 2).seconds == pytest.approx(page, rel=0.3)
    assert estimate.estimate(pending, before, 2).seconds < estimate.estimate(pending, after, 2).seconds


def test_time_of_the_next_steps_is_that_of_recorded_steps_without_the_start_of_their_run() -> None:
    recorded = [
        manifest(0, 16.0, 8, elapsed=500.0), manifest(1, 12.0, 6, elapsed=69.0, starting=9.0),
        manifest(2, 12.0, 6, elapsed=60.0), manifest(3, 12.0, 6, elapsed=61.0),
    ]  # fmt: skip
    assert estimate.time_of_steps(3, recorded) == "time for 3 steps: about 3.0 min, as the recorded ones took"
    for none in ([], recorded[:1], [manifest(1, 12.0, 6)]):
        assert estimate.time_of_steps(1, none) == "time for 1 step: not known before step 1 is recorded"
