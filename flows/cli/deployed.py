"""The verbs for the deployed state: ``promote``, ``hold`` and ``fetch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli import options
from flows.cli.options import AsJson, Library, Name, Timeline
from flows.cli.terminal import errors, out, print_json

Reason = Annotated[str | None, typer.Option(help="Why; recorded with your name, the host and the time.")]


def promote(state: Name, reason: Reason = None, timeline: Timeline = None) -> None:
    """Promote a state that was held: if none after it is promoted, the tag deployed/TIMELINE goes there."""
    _decide(state, timeline, reason, promoted=True)


def hold(state: Name, reason: Reason = None, timeline: Timeline = None) -> None:
    """Hold a promoted state: if it is the deployed one, the tag deployed/TIMELINE goes back to the one before."""
    _decide(state, timeline, reason, promoted=False)


def _decide(name: str, timeline: str | None, reason: str | None, *, promoted: bool) -> None:
    from tasks import record

    project = options.project()
    decide = record.promote if promoted else record.hold
    done = decide(project, options.timeline(project, timeline), name, reason=reason)
    word = "promoted" if promoted else "held"
    at = f"deployed/{done.state.timeline} is at {done.deployed.tag}" if done.deployed else "no state is deployed"
    if not done.changed:
        out.print(f"nothing to do: {done.state.tag} is {word} already; {at}")
    elif promoted and done.deployed != done.state:
        out.print(f"{done.state.tag} is {word}; {at}, which is newer (hold that one, or roll back)")
    else:
        out.print(f"{done.state.tag} is {word}; {at}")


def fetch(
    _deployed: Annotated[bool, typer.Option("--deployed", help="The deployed state: where deployed/TIMELINE is.")],
    to: Annotated[Path, typer.Option(help="A folder; files of other names in it stay.")],
    library: Annotated[Library, typer.Option("--format", help="The library that is to load it.")] = Library.open_clip,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 [the state's].")] = None,
    as_json: AsJson = False,
    timeline: Timeline = None,
) -> None:
    """Bring the deployed model, and no more of the state, to a folder that open_clip or transformers loads."""
    from tasks import console, record
    from tasks.units import size

    project = options.project()
    form = record.Form(library.value, dtype)
    with console.shown() as progress:
        done = record.fetch_model(project, options.timeline(project, timeline), to, form=form, progress=progress)
    for note in done.notes:
        errors.print(f"note: {note}")
    if as_json:
        row = {"tag": done.state.tag, "folder": str(done.folder), "new": done.new, "fetched": done.fetched}
        print_json(row)
    elif done.new:
        source = f"{size(done.fetched)} fetched from the remote" if done.fetched else "all from the cache"
        out.print(f"{done.state.tag} is in {done.folder} ({form.library}, {source})")
    else:
        out.print(f"nothing to do: {done.folder} has {done.state.tag}")
