"""The verb ``grid``."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import options, report
from flows.cli.options import AsJson, Scheduler, Trust, Wait
from flows.cli.terminal import errors, out, print_json
from tasks import processes
from tasks.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flows.grid import GridResult, SelectedGrid
    from tasks.grid.estimate import Estimate
    from tasks.grid.plan import Plan
    from tasks.params import Grid


def grid(
    init: Annotated[str | None, typer.Option(help="Initializations, as zs,ft,ema.")] = None,
    deploy: Annotated[str | None, typer.Option(help="Deployments, as ft,ema,all.")] = None,
    technique: Annotated[str | None, typer.Option(help="Merging techniques, as linear,slerp,ties.")] = None,
    seed: Annotated[str | None, typer.Option(help="Seeds, as 0,1,2.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print how much work the grid is, and run nothing.")] = False,
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Cells that run at the same time; default: the workers, or the cores divided by `threads`, or 1.",
        ),
    ] = None,
    scheduler: Scheduler = None,
    as_json: AsJson = False,
    wait: Wait = False,
    trust: Trust = False,
) -> None:
    """Run protocols × techniques × seeds on one stream; each cell is a timeline. The same command resumes.

    At the end, the command writes a report on the cells to report/.

    An option replaces that list under `grid` in params.yaml.
    """
    began = time.monotonic() - processes.age()
    from flows import grid as grids
    from tasks.grid import cells, reporting

    project = options.project()
    os.chdir(project)  # paths in params.yaml start there
    selected = grids.select(project, _chosen(project, init, deploy, technique, seed))
    count = parallel or grids.parallel_cells(project, selected.params, scheduler)
    if plan:
        made, estimated = grids.planned(project, selected, count)
        if as_json:
            print_json(_plan_row(selected, made, estimated, count))
        else:
            out.print("\n".join(_plan_lines(selected, made, estimated, count)), soft_wrap=True)
        return
    options.settle_trust(project, trust)
    outcome = _run(project, selected, count, began=began, wait=wait, scheduler=scheduler)
    written = None
    if any(outcome.recorded.values()):
        recorded = cells.recorded(project, selected.cells)
        given = _options({"init": init, "deploy": deploy, "technique": technique, "seed": seed})
        command = f"chronomerge grid{given}"
        written = report.write(project, recorded, None, command, command if given else "chronomerge report")
        reporting.note(project, reporting.ReportTime(written.states, _since_last_state(project, outcome), "grid"))
    if as_json:
        page = str(written.page) if written else None
        row = {"recorded": outcome.recorded, "failed": outcome.failed, "left_out": selected.left_out, "page": page}
        print_json(row)
    else:
        out.print("\n".join(_outcome_lines(selected, outcome)), soft_wrap=True)
        if written:
            out.print("\n".join(report.lines(written)), soft_wrap=True)
    if outcome.failed:
        raise typer.Exit(2)


def _run(
    project: Path, selected: SelectedGrid, parallel: int, *, began: float, wait: bool, scheduler: str | None
) -> GridResult:
    from flows import grid as grids
    from tasks import console, progress

    with console.shown() as listener:
        progress.listen(listener)
        try:
            return grids.grid(project, selected, parallel, began=began, wait=wait, scheduler=scheduler)
        except KeyboardInterrupt:
            errors.print("interrupted; what has finished is stored, and the same command resumes")
            raise typer.Exit(130) from None


def _since_last_state(project: Path, outcome: GridResult) -> float:
    """Seconds since this grid recorded its last state: the end of its servers, and the report."""
    from tasks import record

    made = [record.lineage(project, timeline)[-1] for timeline, tags in outcome.recorded.items() if tags]
    last = max(datetime.fromisoformat(state.manifest.recorded.at) for state in made)
    return (datetime.now(UTC) - last).total_seconds()


def _options(given: Mapping[str, str | None]) -> str:
    return "".join(f" --{key} {value}" for key, value in given.items() if value is not None)


def _chosen(
    project: Path, init: str | None, deploy: str | None, technique: str | None, seed: str | None
) -> Grid | None:
    """The grid of params.yaml, with the lists that the command line gives in place of its own.

    Raises:
        UserError: a value that a list does not accept.
    """
    from pydantic import ValidationError

    from tasks.params import Grid, load

    given: dict[str, Any] = {"init": init, "deploy": deploy, "technique": technique, "seed": seed}
    named = {key: [part.strip() for part in text.split(",")] for key, text in given.items() if text is not None}
    if not named:
        return None
    of_file = load(project / "params.yaml").grid or Grid()
    known = {one.shown: one.model_dump(exclude_none=True) for one in of_file.technique}
    if "technique" in named:  # a label of params.yaml stands for its settings
        named["technique"] = [known.get(name, name) for name in named["technique"]]
    try:
        return Grid.model_validate({**of_file.model_dump(), **named})
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"--{first['loc'][0]} {given[str(first['loc'][0])]}: {reason} (got {first['input']!r})"
        ) from None


def _plan_row(selected: SelectedGrid, plan: Plan, estimated: Estimate | None, parallel: int) -> dict[str, Any]:
    from tasks.grid.plan import KINDS

    counts = {
        kind: {"separate": plan.separate(kind), "shared": len(plan.shared(kind)), "pending": len(plan.pending(kind))}
        for kind in KINDS
    }
    return {
        "cells": [one.cell.timeline for one in selected.cells],
        "left_out": dict(selected.left_out),
        "work": counts,
        "parallel": parallel,
        "estimate": asdict(estimated) if estimated else None,
    }


def _plan_lines(selected: SelectedGrid, plan: Plan, estimated: Estimate | None, parallel: int) -> list[str]:
    from tasks.units import counted, duration, size

    lines = [f"{counted(len(selected.cells), 'cell')}, {len(selected.todo)} of them with steps to run"]
    lines.append(f"{'':14}{'each by itself':>16}{'shared':>10}{'to do':>10}")
    for kind, name in (("train", "trainings"), ("deploy", "merges"), ("evaluate", "evaluations")):
        counts = (plan.separate(kind), len(plan.shared(kind)), len(plan.pending(kind)))
        lines.append(f"  {name:12}{counts[0]:16}{counts[1]:10}{counts[2]:10}")
    if estimated is None:
        lines.append("time and bytes: no estimate before a timeline with this model has recorded its first steps")
    else:
        side_by_side = max(1, min(parallel, len(selected.todo)))
        lines.append(
            f"about {duration(estimated.seconds)} to the last state, at the pace recorded so far, in "
            f"{counted(side_by_side, 'cell worker')}; {size(estimated.bytes)} of new weights"
        )
        if estimated.workers != side_by_side:
            lines.append(
                f"  by states that were recorded in {counted(estimated.workers, 'cell worker')}: each is "
                f"{'slower' if estimated.workers < side_by_side else 'faster'} in {side_by_side}, which share the cores"
            )
        if estimated.report is None:
            lines.append(
                "  then the end of the servers and the report, not in it: none has been written on this machine"
            )
        elif estimated.report:
            whole = estimated.seconds + estimated.report
            ends = "to end the servers and for the report" if estimated.ends else "for the report"
            lines.append(f"  then {duration(estimated.report)} {ends}: {duration(whole)} in all")
            if not estimated.ends:
                lines.append("  without the end of the servers: no grid has ended on this machine, to measure it")
        if not estimated.complete:
            lines.append(
                "  without start and recording: the states so far are of an older version, which did not measure them"
            )
    return [*lines, *_left_out(selected)]


def _outcome_lines(selected: SelectedGrid, outcome: GridResult) -> list[str]:
    from tasks.units import counted

    done, states = len(outcome.recorded), sum(map(len, outcome.recorded.values()))
    nothing = "nothing to do: all cells are recorded (chronomerge report shows them)"
    lines = [f"{counted(done, 'cell')} recorded {counted(states, 'state')}" if done else nothing]
    if outcome.failed:
        lines = [f"{counted(len(outcome.failed), 'cell')} failed; the same command runs them again:"]
        lines += [f"  {timeline}: {reason}" for timeline, reason in sorted(outcome.failed.items())]
    return [*lines, *_left_out(selected)]


def _left_out(selected: SelectedGrid) -> list[str]:
    """One line for each reason, with the cells that it concerns."""
    from tasks.units import counted

    of_reason: dict[str, list[str]] = {}
    for timeline, reason in selected.left_out.items():
        of_reason.setdefault(reason, []).append(timeline)
    return [
        f"left out, {counted(len(timelines), 'cell')}: {reason} ({', '.join(timelines)})"
        for reason, timelines in of_reason.items()
    ]
