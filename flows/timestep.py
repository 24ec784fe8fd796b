"""One time step, as TIME has it: fetch → prepare → initialize → train → measure → deploy → evaluate → record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.futures import PrefectFuture
from prefect.states import Completed
from prefect.states import State as RunState
from prefect.tasks import Task

from flows.prefect import artifacts
from tasks import layout, waits
from tasks.errors import may_pass
from tasks.prepare import check_overlap as find_overlap
from tasks.prepare import notes_on
from tasks.record import Code, State
from tasks.record import record as record_state
from tasks.references import Reference
from tasks.step import Inputs, Step, execute, opened, place_arrival, place_evaluation, place_history

RECORD_WAITS = waits.seconds(waits.RECORD)


@flow(name="timestep", flow_run_name="step {step}", validate_parameters=False)
def timestep(
    project: str, step: int, code: dict[str, Any], remote: str, began: float, starting: float | None, fresh: bool
) -> str:
    """Run one time step of a project's timeline and record it; returns the state's tag.

    The caller holds the timeline's lock and has opened the store. ``code`` is a `Code` as a dictionary, ``remote``
    the name of the DVC remote, ``began`` and ``starting`` are as in `Step`, and ``fresh`` says that the previous state
    was made just now: what an earlier run left in the cache is hashed before it is trusted. Nodes that have finished
    before, in whatever run, are not run again.
    """
    with opened(
        Path(project), step, Code(**code), remote, fresh=fresh, began=began, starting=starting
    ) as current:  # fmt: skip
        history = fetch_history(current)
        raw_arrival = fetch_arrival(current)
        raw_evaluation = fetch_evaluation(current)

        arrival = prepare.submit(current, raw_arrival, history)
        test_sets = prepare_evaluation.submit(current, raw_evaluation, history)
        init = initialize.submit(current, history)
        succeeded(arrival, test_sets, init)
        overlap = check_overlap(current, arrival, test_sets)

        expert = train(current, init, arrival, history)
        statistics = measure(current, expert, arrival, history)
        fitted = [fit(current, expert, statistics, arrival, history)] if current.params.fit else []
        deployed = deploy(current, expert, statistics, *fitted, arrival, history)
        metrics = evaluate(current, expert, deployed, test_sets, history)
        nodes = [arrival, test_sets, init, expert, statistics, *fitted, deployed, metrics]
        if current.params.evaluate.heads:
            nodes.append(heads(current, expert, deployed, arrival, test_sets, history))
        if current.params.evaluate.compatibility:
            nodes.append(compatibility(current, deployed, test_sets, history))
        state = record(current, [history, raw_arrival, raw_evaluation], nodes, overlap)
        previous = current.previous
    artifacts.publish_step(state, previous)
    return state.tag


def passing(_task: Task[..., Any], _run: TaskRun, state: RunState[Any]) -> bool:
    """Whether a task that has failed is worth another try: a network or a store may recover."""
    return may_pass(state.result(raise_on_failure=False))


def node_task(name: str) -> Task[..., Any]:
    """A Prefect task for a node of ``dvc.yaml``: takes what the nodes before it gave, and gives a `Reference`.

    Of earlier results Prefect knows nothing: keys and references are `tasks.step`'s, and shared with other runs.
    """

    @task(name=name, task_run_name=f"{name}-{{step.number}}", cache_policy=NO_CACHE, persist_result=False)
    def run(step: Step, *given: Inputs | Reference) -> Reference | RunState[Reference]:
        done = execute(step, name, given)
        return Completed(name="Cached", data=done.reference) if done.reused else done.reference

    return run


def fetch_task(name: str, place: Callable[[Step], Inputs]) -> Task[[Step], Inputs]:
    """A Prefect task that places inputs: the tasks that a network takes part in."""

    @task(
        name=name, task_run_name=f"{name}-{{step.number}}", cache_policy=NO_CACHE, persist_result=False,
        retries=3, retry_delay_seconds=[2, 10, 30], retry_condition_fn=passing,
    )  # fmt: skip
    def run(step: Step) -> Inputs:
        return place(step)

    return run


fetch_history = fetch_task("fetch-history", place_history)
fetch_arrival = fetch_task("fetch-arrival", place_arrival)
fetch_evaluation = fetch_task("fetch-evaluation", place_evaluation)
prepare = node_task("prepare")
prepare_evaluation = node_task("prepare-evaluation")
initialize = node_task("initialize")
train = node_task("train")
measure = node_task("measure")
fit = node_task("fit")
deploy = node_task("deploy")
evaluate = node_task("evaluate")
heads = node_task("heads")
compatibility = node_task("compatibility")


@task(name="check-overlap", task_run_name="check-overlap-{step.number}", cache_policy=NO_CACHE, persist_result=False)
def check_overlap(step: Step, *_prepared: Any) -> list[Any]:
    """Refuse to train on test images, unless the params allow it; what they have in common otherwise."""
    return find_overlap(
        step.folder / layout.ARRIVAL, step.folder / layout.EVALUATION, step.params, step.progress
    )  # fmt: skip


@task(
    name="record", task_run_name="record-{step.number}", cache_policy=NO_CACHE, persist_result=False,
    retries=len(RECORD_WAITS), retry_delay_seconds=RECORD_WAITS, retry_condition_fn=passing,
)  # fmt: skip
def record(step: Step, inputs: list[Inputs], nodes: list[Any], overlap: list[Any]) -> State:
    """Record the step from references of its nodes; git alone knows what is recorded."""
    placed = {path: entry for one in inputs for path, entry in one.outs.items()}
    state = record_state(
        step.project, step.tree, step.code, step.start, placed, nodes, step.cache, step.dvc, step.began,
        {one.test_set: one.facts for one in overlap},
        {path: notes for path in layout.RAW if (notes := notes_on(step.folder / path))},
        step.starting,
    )  # fmt: skip
    held = "" if state.manifest.promoted else ", held by the gate"
    scored = f"A_KA {state.metrics['A_KA']:.1f}, A_ZS {state.metrics['A_ZS']:.1f}"
    step.progress("recorded as", 1, 1, f"{state.tag}: {scored}{held}")
    return state


def succeeded(*nodes: PrefectFuture[Any]) -> None:
    """Wait for nodes that run side by side; if one fails, its own error is raised."""
    for node in nodes:
        node.result()
