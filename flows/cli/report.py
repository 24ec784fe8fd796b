"""The verb ``report``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import options
from flows.cli.options import AsJson
from flows.cli.terminal import out, print_json
from tasks import processes

if TYPE_CHECKING:
    from tasks.grid.cells import Cell
    from tasks.report.report import Written


def report(
    timeline: Annotated[
        list[str] | None,
        typer.Option(
            help="A timeline to report on, or several; by default the grid in params.yaml as far as it is recorded, "
            "else its timeline."
        ),
    ] = None,
    to: Annotated[Path | None, typer.Option(help="The folder to write to; by default report/ in the project.")] = None,
    as_json: AsJson = False,
) -> None:
    """One page on what is recorded: curves, heat maps, tables; with its figures and its table as files."""
    began = time.monotonic() - processes.age()
    from tasks.grid import reporting

    project = options.project()
    cells, made_by = ([], "") if timeline else _of_grid(project)
    if not cells:
        from tasks.report import plain

        cells, made_by = plain.cells(project, timeline or [options.timeline(project)]), "chronomerge run"
    drawn_by = " ".join(["chronomerge report", *(f"--timeline {name}" for name in timeline or ())])
    written = write(project, cells, to, made_by, drawn_by)
    reporting.note(project, reporting.ReportTime(written.states, time.monotonic() - began, "report"))
    if as_json:
        print_json(row(written))
    else:
        out.print("\n".join(lines(written)), soft_wrap=True)


def _of_grid(project: Path) -> tuple[list[Cell], str]:
    """What is recorded of the grid in params.yaml, and the command that records the rest."""
    from tasks.grid import cells
    from tasks.params import load

    path = project / "params.yaml"
    grid = load(path).grid
    return (
        cells.recorded(project, cells.expand(path.read_text(encoding="utf-8"), grid, project)) if grid else []
    ), "chronomerge grid"


def write(project: Path, cells: Sequence[Cell], to: Path | None, made_by: str, drawn_by: str) -> Written:
    """Write the report on some cells, with its progress on the terminal."""
    from tasks import console
    from tasks.report.report import report
    from tasks.storage import places

    with console.shown() as progress:
        return report(
            project,
            cells,
            places.output(to or project / "report", folder=True),
            made_by=made_by,
            drawn_by=drawn_by,
            progress=progress,
        )


def row(written: Written) -> dict[str, object]:
    """What was written, for programs: paths, and what was left out."""
    return {
        "page": str(written.page),
        "tables": [str(path) for path in written.tables],
        "figures": [str(path) for path in written.figures],
        "orders": [one.as_dict() for one in written.orders],
        "left_out": [{"timeline": m.timeline, "reason": m.reason, "command": m.command} for m in written.left_out],
    }


def lines(written: Written) -> list[str]:
    """What was written, for people."""
    folder = written.page.parent
    said = [
        f"{written.page}",
        f"beside it: {', '.join(path.name for path in written.tables)}, and {len(written.figures)} files in "
        f"{folder.name}/figures",
    ]
    said += [str(one) for one in written.orders]
    for missing in written.left_out:
        brings = f"; this brings them: {missing.command}" if missing.command else ""
        said.append(f"left out: task vectors of {missing.timeline}: {missing.reason}{brings}")
    return said
