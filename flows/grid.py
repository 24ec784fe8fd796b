"""TIME's grid: every cell is a timeline with its own states; cells run at the same time, and equal nodes run once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.prefect import runs
from flows.prefect import server as prefect_server
from flows.processes.cell_workers import CellWorkers
from flows.run import check, demanded, pending
from tasks import progress, record
from tasks.errors import UserError
from tasks.grid import cells, estimate, plan, reporting
from tasks.grid.cells import Planned
from tasks.grid.estimate import Estimate
from tasks.grid.plan import Plan
from tasks.params import Arrival, Grid, Params, load
from tasks.storage import store
from tasks.workers import pool


@dataclass(frozen=True)
class SelectedGrid:
    """The cells of a grid, before it runs."""

    params: Params
    cells: tuple[Planned, ...]
    left_out: Mapping[str, str]
    """Cells that cannot run: timeline → reason."""
    pending: frozenset[str]
    """Timelines with steps that are not recorded yet."""

    @property
    def todo(self) -> list[Planned]:
        return [one for one in self.cells if one.cell.timeline in self.pending]


@dataclass
class GridResult:
    """The result of each cell."""

    recorded: dict[str, list[str]] = field(default_factory=dict)
    """Timeline → tags of the states that this run recorded."""
    failed: dict[str, str] = field(default_factory=dict)
    """Timeline → reason."""


def select(project: Path, chosen: Grid | None = None) -> SelectedGrid:
    """The cells of a project's grid, or of ``chosen``, and which of them are pending. Starts no work and no server.

    Raises:
        UserError: the params are wrong, or those of a cell differ from what its timeline was recorded with.
    """
    path = project / "params.yaml"
    params = load(path)
    fit, left_out = cells.usable(
        cells.expand(path.read_text(encoding="utf-8"), chosen or params.grid or Grid(), project)
    )
    unfinished = frozenset(one.cell.timeline for one in fit if pending(project, None, one.params).steps)
    return SelectedGrid(params, tuple(fit), left_out, unfinished)


def planned(project: Path, selected: SelectedGrid, parallel: int) -> tuple[Plan, Estimate | None]:
    """The work of a grid, total and pending; and an estimate, if recorded states of its model exist.

    ``parallel`` is how many cells may run at the same time.
    """
    recorded = {
        (one.cell.timeline, state.step)
        for one in selected.cells
        for state in record.lineage(project, one.cell.timeline)
    }  # fmt: skip
    made = plan.plan(selected.cells, recorded)
    same = [state for state in record.every(project) if state.params["base"]["model"] == selected.params.base.model]
    side_by_side = max(1, min(parallel, len(selected.todo)))
    known = estimate.measured((state.manifest for state in same), side_by_side)
    if known is None:
        return made, None
    report = reporting.of_states(project, len({(work.timeline, work.step) for work in made.works}))
    return made, estimate.estimate(made, known, side_by_side, report)


def parallel_cells(project: Path, params: Params, scheduler: str | None) -> int:
    """How many cells to run at the same time: one for each Dask worker.

    Without a scheduler: the cores divided by ``threads`` of the params, or one if these do not set ``threads``.

    Raises:
        UserError: no scheduler answers, or it has no worker.
    """
    with pool.opened(scheduler, project) as workers:
        if workers:
            return workers.slots
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // params.threads) if params.threads else 1


def grid(
    project: Path,
    selected: SelectedGrid,
    parallel: int,
    *,
    began: float,
    wait: bool = False,
    scheduler: str | None = None,
) -> GridResult:
    """Run all pending cells of a grid. A failed cell does not stop the others; the same call runs it again.

    Nodes run in the cell workers, or on the workers of a Dask ``scheduler``. ``began`` is when the command began, by
    `time.monotonic`.

    Raises:
        UserError: an error that concerns all cells, reported as early as possible.
    """
    from tasks import prepare

    if not selected.todo:
        return GridResult()
    record.require_same_code(project, Path(__file__).parents[1])
    arrivals: dict[str, Arrival] = {}
    for one in selected.todo:
        last = record.last(project, one.cell.timeline)
        for warning in check(one.params, project, base=last is None):
            progress.report("note:", 1, 1, f"{one.cell.timeline}: {warning}")
        arrivals |= {arrival.name: arrival for arrival in one.params.stream[last.step if last else 0 :]}
    prepare.check_hub(arrivals.values())
    data = {one.params.model_dump_json(include={"base", "stream", "evaluate"}): one for one in selected.todo}
    for one in data.values():  # most cells share one stream
        if demand := demanded(pending(project, None, one.params), project):
            progress.report("note:", 1, 1, demand)
    own = sorted({path for one in selected.todo for path in one.params.own_files})
    code = record.code_of(project, *own)
    starting = "starting the store, the Prefect server and the cell workers"
    progress.report(starting, 0, 1)
    with (
        prefect_server.serving(project) as server,
        CellWorkers(project, min(parallel, len(selected.todo))) as workers,
        store.open_store(project, selected.params.store.remote) as remote,
    ):
        jobs: dict[str, dict[str, Any]] = {
            one.cell.timeline: {
                "project": str(project),
                "code": asdict(record.with_params(project, code, one.text)),
                "remote_name": remote.name,
                "parallel": workers.count,
                "wait": wait,
                "scheduler": scheduler,
            }
            for one in selected.todo
        }
        server.wait()
        if server.private:  # no other run uses its database
            runs.crash_dead(server, project, selected.params.timeline)
        workers.wait()
        if record.code_of(project, *own).tree != code.tree:
            raise UserError("files of the project changed while the grid was starting; run again")
        progress.report(starting, 1, 1)
        for one in selected.todo[: workers.count]:  # the first cells: one for each cell worker
            jobs[one.cell.timeline]["began"] = began
        return _flow(project, selected, jobs, workers)


def _flow(
    project: Path, selected: SelectedGrid, jobs: Mapping[str, dict[str, Any]], workers: CellWorkers
) -> GridResult:
    """The Prefect flow of a grid: a task for each cell, whose own flow runs in a cell worker."""
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.futures import as_completed
    from prefect.states import Completed, Failed, State
    from prefect.task_runners import ThreadPoolTaskRunner

    from flows.prefect import artifacts

    outcome = GridResult()

    @task(name="cell", cache_policy=NO_CACHE, persist_result=False)
    def cell(timeline: str) -> list[str]:
        return workers.run(timeline, jobs[timeline])

    @flow(
        name="grid", flow_run_name=f"grid {selected.params.timeline}", persist_result=False,
        task_runner=ThreadPoolTaskRunner(max_workers=workers.count),  # type: ignore[arg-type]
    )  # fmt: skip
    def grid() -> State[Any]:
        try:
            futures = {cell.with_options(task_run_name=one).submit(one): one for one in jobs}
            for number, future in enumerate(as_completed(list(futures)), start=1):
                timeline, result = futures[future], future.result(raise_on_failure=False)
                if isinstance(result, BaseException):
                    outcome.failed[timeline] = str(result)
                    progress.report(timeline, 1, 1, f"FAILED: {result}")
                else:
                    outcome.recorded[timeline] = result
                    progress.report(timeline, 1, 1, f"recorded up to {result[-1]}" if result else "no pending steps")
                progress.report("cells", number, len(futures))
        except BaseException:  # Ctrl-C or SIGTERM: Prefect waits for its tasks, and they wait for their cell workers
            workers.close()
            raise
        if recorded := cells.recorded(project, selected.cells):
            artifacts.publish(project, recorded)
        if outcome.failed:
            return Failed(message=f"{len(outcome.failed)} of {len(jobs)} cells failed")
        return Completed(message=f"{len(jobs)} cells")

    try:
        grid(return_state=True)
    finally:
        prefect_server.flush_logs()
    return outcome
