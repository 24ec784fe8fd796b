"""The command ``chronomerge``: thin, and quick to answer; heavy imports wait until a verb needs them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows import (
    cli_arrive,
    cli_care,
    cli_deployed,
    cli_grid,
    cli_merge,
    cli_remote,
    cli_report,
    cli_serve,
    cli_states,
    cli_stream,
    here,
)
from flows.cli_states import AsJson, Scheduler, Wait
from tasks.errors import UserError
from tasks.record.dvc import RemoteError
from tasks.record.git import GitError

app = typer.Typer(
    name="chronomerge",
    help="Merge models over time: every time step trained, merged, evaluated and recorded, to be restored at will.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(highlight=False, markup=False)

Until = Annotated[int | None, typer.Option(help="The last step to run; by default all of the stream.", min=0)]


def main() -> None:
    """Entry point: what the user can mend is one line and status 2."""
    try:
        app()
    except UserError as error:
        _say(f"error: {error}")
        sys.exit(2)
    except (RemoteError, GitError) as error:
        _say(f"error: {error}; try again, or look into .chronomerge/logs")
        sys.exit(2)
    except OSError as error:
        _say(f"error: {error.filename or 'the system'}: {error.strerror or error}; mend that and run again")
        sys.exit(2)


def _say(sentence: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(sentence, style="red")


@app.command()
def demo() -> None:
    """The whole story on the embedded default: a base, a stream of real drawings, a table of states."""
    from flows import views
    from tasks.params import load

    project = here.project()
    name = load(project / "params.yaml").timeline
    if name != "demo":
        raise UserError(f"params.yaml now holds your own timeline {name!r}; use `chronomerge run`")
    _run(project, None, wait=False)
    out.print()
    out.print(views.states_table(project, name))
    out.print(views.what_next(project, name), soft_wrap=True)


@app.command()
def run(until: Until = None, wait: Wait = False, scheduler: Scheduler = None) -> None:
    """Run every pending time step; after a failure or a kill, the same command resumes."""
    _run(here.project(), until, wait=wait, scheduler=scheduler)


@app.command()
def step(wait: Wait = False, scheduler: Scheduler = None) -> None:
    """Run the next time step only."""
    from flows.run import pending

    project = here.project()
    steps = pending(project).steps
    _run(project, steps[0] if steps else None, wait=wait, scheduler=scheduler)


@app.command()
def status(as_json: AsJson = False) -> None:
    """What runs now, what is recorded, what is pending."""
    from flows import views

    found = views.status(here.project())
    out.print_json(json.dumps(found)) if as_json else out.print(views.status_text(found), soft_wrap=True)


app.command()(cli_arrive.arrive)
app.command()(cli_arrive.inbox)
app.command()(cli_grid.grid)
app.command()(cli_serve.serve)
app.command()(cli_states.states)
app.command()(cli_states.restore)
app.command()(cli_states.verify)
app.command()(cli_states.rollback)
app.command()(cli_deployed.promote)
app.command()(cli_deployed.hold)
app.command()(cli_deployed.fetch)
app.command()(cli_care.doctor)
app.command()(cli_care.gc)
app.command()(cli_report.report)
app.command()(cli_merge.merge)
app.command()(cli_merge.techniques)
app.add_typer(cli_remote.app, name="remote")
app.add_typer(cli_stream.app, name="stream")


def _run(project: Path, until: int | None, *, wait: bool, scheduler: str | None = None) -> None:
    from flows import hooks, views
    from flows.run import run as run_pending
    from tasks import console, progress

    os.chdir(project)  # paths in params.yaml start there
    with console.shown() as listener:
        progress.listen(listener)
        try:
            tags = run_pending(project, until, wait=wait, scheduler=scheduler)
        except KeyboardInterrupt:
            _say("interrupted; what has finished is kept, and the same command goes on from there")
            raise typer.Exit(130) from None
        except Exception as error:
            hooks.failed(project, error)
            raise
    name = here.timeline(project)
    if tags:
        out.print(f"recorded {tags[0]}" + (f" to {tags[-1]}" if len(tags) > 1 else ""))
        for line in views.held_lines(project, name, tags):
            out.print(line, soft_wrap=True)
    else:
        out.print(views.nothing_pending(project, name))
