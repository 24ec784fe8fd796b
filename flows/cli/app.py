"""The command ``chronomerge``: thin, and quick to answer; heavy imports wait until a verb needs them."""

from __future__ import annotations

import errno
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from flows.cli import (
    arrive,
    convert,
    data,
    decode,
    deployed,
    grid,
    heads,
    maintenance,
    measure,
    merge,
    options,
    pack,
    publish,
    remote,
    report,
    serve,
    states,
    stream,
    terminal,
    workers,
)
from flows.cli.options import AsJson, Scheduler, Trust, Wait
from flows.cli.terminal import errors, out, print_json
from tasks import environment, processes
from tasks.errors import UserError, is_out_of_memory
from tasks.storage.dvc import RemoteError
from tasks.storage.git import GitError
from tasks.text import abridged, redacted

app = typer.Typer(
    name="chronomerge",
    help="Merge models over time: every time step trained, merged, evaluated and recorded, to be restored at will.",
    no_args_is_help=True,
    rich_markup_mode=None,  # its tables cut the names of options on a narrow terminal, and take [words] for markup
    pretty_exceptions_enable=False,
)

Until = Annotated[int | None, typer.Option(help="The last step to run; by default all of the stream.", min=0)]


def main() -> None:
    """Entry point: what the user can mend is one line and status 2."""
    terminal.protect()
    processes.clean_up_on_sigterm()
    environment.bypass_proxies_on_loopback()
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except (RemoteError, GitError) as error:
        _fail(f"{error}; {_way_out(str(error)) or 'try again, or look into .chronomerge/logs'}")
    except OSError as error:
        why = f"{error.strerror or error}"
        target = error.filename2 if error.errno in _NO_ROOM else None  # of a copy it is the target that is full
        where = target or error.filename or "the system"
        _fail(f"{where}: {why}; {_way_out(why) or 'mend that and run again'}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _fail("this needs more memory than is free; end other programs, use a smaller model, or a larger machine")


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WAYS_OUT = {
    ("Permission denied", "insufficient permission", "Operation not permitted"):
        "you may not write there; work in a clone of your own, or have its owner allow it",
    ("Read-only file system",): "nothing can be written there; work in a clone on another disk",
    ("No space left on device", "Disk quota exceeded", "File too large", "unable to write file"):
        "free space there, and run the same command again: it goes on from what has finished",
}  # fmt: skip
"""What the system, or git, says of something that another try cannot help."""


def _way_out(said: str) -> str | None:
    return next((way for signs, way in _WAYS_OUT.items() if any(sign in said for sign in signs)), None)


def _fail(sentence: str) -> NoReturn:
    errors.print(f"error: {abridged(redacted(sentence))}", style="red")
    sys.exit(2)


def _version(asked: bool) -> None:
    if asked:
        out.print(f"chronomerge {version('chronomerge')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(trust: Trust = False) -> None:
    """The whole story on the embedded default: a base, a stream of real drawings, a table of states."""
    from flows.cli import tables
    from tasks.params import load

    name = load(options.project() / "params.yaml").timeline
    if name != "demo":
        raise UserError(f"params.yaml now holds your own timeline {name!r}; use `chronomerge run`")
    project = _ready(trust)
    _run(project, None, wait=False)
    out.print()
    out.print(tables.states_table(project, name))
    out.print(tables.what_next(project, name), soft_wrap=True)


@app.command()
def run(until: Until = None, wait: Wait = False, scheduler: Scheduler = None, trust: Trust = False) -> None:
    """Run every pending time step; after a failure or a kill, the same command resumes."""
    _run(_ready(trust), until, wait=wait, scheduler=scheduler)


@app.command()
def step(wait: Wait = False, scheduler: Scheduler = None, trust: Trust = False) -> None:
    """Run the next time step only."""
    from flows.run import pending

    project = _ready(trust)
    steps = pending(project).steps
    _run(project, steps[0] if steps else None, wait=wait, scheduler=scheduler)


@app.command()
def status(as_json: AsJson = False) -> None:
    """What runs now, what is recorded, what is pending."""
    from flows.cli import status as status_view

    facts = status_view.gather(options.project())
    print_json(facts) if as_json else out.print(status_view.text(facts), soft_wrap=True)


@app.command()
def withdraw(
    arrival: Annotated[str, typer.Argument(help="A recorded arrival: its name in the stream.")],
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train later experts again that descend from it, instead of keeping them.")
    ] = False,
    wait: Wait = False,
    scheduler: Scheduler = None,
    trust: Trust = False,
) -> None:
    """Take an arrival out: a new line of states without its expert and its data; later experts stay as they are."""
    from flows.cli import tables
    from flows.withdraw import withdraw as take_out

    project = _ready(trust)
    plan, made = take_out(project, arrival, retrain=retrain, wait=wait)
    at = made or plan.back_to
    said = f"{arrival} is withdrawn ({plan.withdrawal.state} recorded it): a new line starts at {at.tag}"
    out.print(said, soft_wrap=True)
    if plan.retrained:
        out.print(f"trained again: {', '.join(plan.retrained)}", soft_wrap=True)
    _run(project, None, wait=wait, scheduler=scheduler)
    for line in tables.withdrawn_lines(project, options.timeline(project)):
        out.print(line, soft_wrap=True)


app.command()(arrive.arrive)
app.command()(arrive.inbox)
app.command()(grid.grid)
app.command()(serve.serve)
app.command()(states.states)
app.command()(states.restore)
app.command()(states.leave)
app.command()(states.verify)
app.command()(states.rollback)
app.command()(deployed.promote)
app.command()(deployed.hold)
app.command()(deployed.fetch)
app.command()(publish.publish)
app.command()(maintenance.doctor)
app.command()(maintenance.gc)
app.command()(report.report)
app.command()(merge.merge)
app.command()(convert.convert)
app.command()(decode.decode)
app.command()(pack.pack)
app.command()(pack.unpack)
app.command()(measure.measure)
app.command()(merge.techniques)
app.add_typer(data.app, name="data")
app.add_typer(heads.app, name="heads")
app.add_typer(remote.app, name="remote")
app.add_typer(stream.app, name="stream")
app.add_typer(workers.app, name="workers")


def _ready(trust: bool) -> Path:
    """The project, in whose folder this process now works, before anything changes in it.

    Raises:
        UserError: there is none, or nobody trusts its hooks.
    """
    project = options.project()
    os.chdir(project)  # paths in params.yaml start there
    options.settle_trust(project, trust)
    return project


def _run(project: Path, until: int | None, *, wait: bool, scheduler: str | None = None) -> None:
    from flows import hooks
    from flows.cli import tables
    from flows.run import run as run_pending
    from tasks import console, progress

    before = processes.age()
    with console.shown() as listener:
        progress.listen(listener)
        try:
            tags = run_pending(project, until, wait=wait, scheduler=scheduler, before=before)
        except KeyboardInterrupt:
            errors.print("interrupted; what has finished is stored, and the same command resumes")
            raise typer.Exit(130) from None
        except Exception as error:
            hooks.failed(project, error)
            raise
    name = options.timeline(project)
    if tags:
        out.print(f"recorded {tags[0]}" + (f" to {tags[-1]}" if len(tags) > 1 else ""))
        for line in tables.held_lines(project, name, tags):
            out.print(line, soft_wrap=True)
    else:
        out.print(tables.nothing_pending(project, name))
