"""The verb ``report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows import here
from flows.cli_states import AsJson

if TYPE_CHECKING:
    from tasks.report.report import Written

out = Console(highlight=False, markup=False)


def report(
    timeline: Annotated[
        list[str] | None, typer.Option(help="A timeline to report on, or several; by default the one in params.yaml.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="The folder to write to; by default report/ in the project.")] = None,
    as_json: AsJson = False,
) -> None:
    """One page on what is recorded: curves, heat maps, tables; with its figures and its table as files."""
    from tasks import console
    from tasks.report import plain
    from tasks.report.report import report as write

    project = here.project()
    names = timeline or [here.timeline(project)]
    drawn_by = " ".join(["chronomerge report", *(f"--timeline {name}" for name in names)])
    with console.shown() as progress:
        written = write(
            project,
            plain.cells(project, names),
            to.resolve() if to else project / "report",
            made_by="chronomerge run",
            drawn_by=drawn_by,
            progress=progress,
        )
    if as_json:
        out.print_json(json.dumps(row(written)))
    else:
        out.print("\n".join(lines(written)), soft_wrap=True)


def row(written: Written) -> dict[str, object]:
    """What was written, for programs: paths, and what was left out."""
    return {
        "page": str(written.page),
        "tables": [str(path) for path in written.tables],
        "figures": [str(path) for path in written.figures],
        "left_out": [{"timeline": m.timeline, "reason": m.reason, "command": m.command} for m in written.left_out],
    }


def lines(written: Written) -> list[str]:
    """What was written, for people."""
    folder = written.page.parent
    found = [
        f"{written.page}",
        f"beside it: {', '.join(path.name for path in written.tables)}, and {len(written.figures)} files in "
        f"{folder.name}/figures",
    ]
    for missing in written.left_out:
        brings = f"; this brings them: {missing.command}" if missing.command else ""
        found.append(f"left out: task vectors of {missing.timeline}: {missing.reason}{brings}")
    return found
