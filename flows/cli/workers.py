"""``chronomerge workers``: what the workers of a Dask scheduler need beside a clone of the project."""

from __future__ import annotations

import typer

from flows.cli import options
from flows.cli.terminal import out

app = typer.Typer(help="Prepare the workers of a Dask scheduler.", no_args_is_help=True)


@app.callback()
def common() -> None:
    pass


@app.command()
def keys() -> None:
    """Make keys for a scheduler at tls://; who has no copy of them can neither connect nor listen."""
    from tasks.workers import keys as made

    project = options.project()
    folder = made.make(project)
    out.print(f"keys for one scheduler and its workers are in {folder}", soft_wrap=True)
    out.print("copy that folder into .chronomerge/ of each worker's clone (scp -pr), and start, each in its clone:")
    for line in made.starts(folder.relative_to(project)):
        out.print(f"  {line}", soft_wrap=True)
    out.print("  chronomerge run --scheduler tls://HOST:8786")
