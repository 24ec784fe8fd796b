"""``chronomerge data``: whether copies of published data sets are the right ones."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from flows.cli import terminal
from tasks.errors import UserError

app = typer.Typer(help="Look at data before a run.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Look at data before a run."""


@app.command()
def check(
    what: Annotated[str, typer.Argument(help="A ready stream, or STREAM/NAME for one of its sets.")],
    data: Annotated[
        Path | None, typer.Option(help="A folder that has the sets, or (FoMo-in-Flux) a repository, hf:ORG/NAME.")
    ] = None,
    info: Annotated[
        Path | None, typer.Option(help="The folder of FoMo-in-Flux's annotation files [00_info beside the sets].")
    ] = None,
    source: Annotated[str | None, typer.Option(help="The kind of source to prefer, such as torchvision.")] = None,
    score: Annotated[
        bool, typer.Option("--score", help="Compute zero-shot scores too, with the model that known ones are of.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Bring the sets of a ready stream, and compare samples, classes and scores with what is known of them."""
    from tasks import console, layout, progress
    from tasks.params import Base
    from tasks.storage.git import top_level
    from tasks.stream import copies, manifest, ready

    project = top_level(Path.cwd())
    stream, _, name = (what, "", "") if what.endswith((".yaml", ".yml")) else what.partition("/")
    ready_stream = manifest.read(stream, project)
    sets = [one for one in ready_stream.sets if not name or one.name == name]
    if not sets:
        raise UserError(f"{stream} has no set {name!r}; it has {', '.join(one.name for one in ready_stream.sets)}")
    if score and ready_stream.scored_by is None:
        raise UserError(f"{stream}: names no model that scores are of; write scored_by: MODEL, TAG into it")
    model, _, tag = (ready_stream.scored_by or "").partition(", ")
    base = Base(model=model, pretrained=tag) if score else None
    private = layout.make_private(project)
    with tempfile.TemporaryDirectory(dir=private, prefix="check-") as scratch, console.shown() as listener:
        progress.listen(listener)
        findings = list(
            copies.check(
                ready_stream,
                sets,
                ready.Wanted(data=data, kind=source, info=info),
                project,
                Path(scratch),
                base,
                progress.report,
            )
        )
    if json:
        terminal.print_json([
            {"set": f.name, "what": f.what, "expected": f.expected, "found": f.found, "agrees": f.agrees,
             "problem": f.problem, "at": f.at} for f in findings
        ])  # fmt: skip
    else:
        terminal.out.print(_table(findings))
        for at in dict.fromkeys(f"{f.name}: {f.at}" for f in findings if f.at):
            terminal.out.print(at, soft_wrap=True)
    wrong = [f for f in findings if f.agrees is False or f.problem]
    unknown = sum(f.agrees is None and not f.problem for f in findings)
    terminal.errors.print(
        f"{len(sets)} sets: {sum(f.agrees is True for f in findings)} properties agree, {len(wrong)} do not, "
        f"{unknown} have nothing to be compared with"
    )
    if wrong:
        raise typer.Exit(1)


def _table(findings: list) -> Table:  # type: ignore[type-arg]
    table = Table(box=box.HORIZONTALS, padding=0)
    for column in ("set", "what", "expected", "found", ""):
        table.add_column(column, justify="right" if column in ("expected", "found") else "left")
    for one in findings:
        said = one.problem or {True: "agrees", False: "differs", None: "not known"}[one.agrees]
        table.add_row(one.name, one.what, _number(one.expected), _number(one.found), said)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"
