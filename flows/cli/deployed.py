"""The verbs for the deployed state: ``promote``, ``hold`` and ``fetch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli import options
from flows.cli.options import AsJson, Library, ModelDtype, ModelFormat, Name, Timeline
from flows.cli.terminal import errors, out, print_json
from tasks.errors import UserError

Reason = Annotated[str | None, typer.Option(help="Why; recorded with your name, the host and the time.")]


Pointer = Annotated[
    str | None, typer.Option(metavar="NAME", help="Move this pointer, such as champion, and decide nothing else.")
]


def promote(state: Name, reason: Reason = None, pointer: Pointer = None, timeline: Timeline = None) -> None:
    """Promote a state that was held: if none after it is promoted, the tag deployed/TIMELINE goes there.

    With --pointer the tag pointer/TIMELINE/NAME goes to the state, whichever it is.
    """
    _decide(state, timeline, reason, pointer, promoted=True)


def hold(state: Name, reason: Reason = None, pointer: Pointer = None, timeline: Timeline = None) -> None:
    """Hold a promoted state: if it is the deployed one, the tag deployed/TIMELINE goes back to the one before.

    With --pointer the tag pointer/TIMELINE/NAME goes back to where it was before this state, or away.
    """
    _decide(state, timeline, reason, pointer, promoted=False)


def _decide(name: str, timeline: str | None, reason: str | None, pointer: str | None, *, promoted: bool) -> None:
    from tasks import record

    project = options.project()
    decide = record.promote if promoted else record.hold
    done = decide(project, options.timeline(project, timeline), name, reason=reason, pointer=pointer)
    if pointer is not None:
        at = f"{pointer} is at {done.deployed.tag}" if done.deployed else f"{pointer} is gone: it was at no other state"
        out.print(at if done.changed else f"nothing to do: {at}")
        return
    word = "promoted" if promoted else "held"
    at = f"deployed/{done.state.timeline} is at {done.deployed.tag}" if done.deployed else "no state is deployed"
    if not done.changed:
        out.print(f"nothing to do: {done.state.tag} is {word} already; {at}")
    elif promoted and done.deployed != done.state:
        out.print(f"{done.state.tag} is {word}; {at}, which is newer (hold that one, or roll back)")
    else:
        out.print(f"{done.state.tag} is {word}; {at}")


def fetch(
    to: Annotated[Path, typer.Option(help="A folder; files of other names in it stay.")],
    deployed: Annotated[
        bool, typer.Option("--deployed", help="The deployed state: where deployed/TIMELINE is.")
    ] = False,
    pointer: Annotated[
        str | None, typer.Option(metavar="NAME", help="The state that another pointer is at, such as champion.")
    ] = None,
    library: ModelFormat = Library.open_clip,
    dtype: ModelDtype = None,
    as_json: AsJson = False,
    timeline: Timeline = None,
) -> None:
    """Bring the model of a pointer, and no more of its state, to a folder that open_clip or transformers loads."""
    from tasks import console, record
    from tasks.units import size

    project = options.project()
    if deployed == (pointer is not None):
        raise UserError("say which state: --deployed, or --pointer NAME")
    which, name, form = pointer or "deployed", options.timeline(project, timeline), record.Form(library.value, dtype)
    with console.shown() as progress:
        done = record.fetch_model(project, name, to, pointer=which, form=form, progress=progress)
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
