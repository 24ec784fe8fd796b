"""``chronomerge publish``: a state as a model with a card, for a hub or a folder."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli import options
from flows.cli.options import AsJson, Library, ModelDtype, ModelFormat, Timeline
from flows.cli.terminal import errors, out, print_json
from tasks.errors import UserError


def publish(
    to: Annotated[str, typer.Option(metavar="DIR|hf:ORG/NAME", help="A new folder, or a repository of a model hub.")],
    state: Annotated[
        str | None,
        typer.Argument(metavar="[T]", help="A time step, 3.2 for another line, or a tag [the deployed]."),
    ] = None,
    pointer: Annotated[
        str | None, typer.Option(metavar="NAME", help="The state that a pointer is at, such as champion.")
    ] = None,
    library: ModelFormat = Library.open_clip,
    dtype: ModelDtype = None,
    as_json: AsJson = False,
    timeline: Timeline = None,
) -> None:
    """Publish a state's model with a card (scores, lineage, licences) and its recipe, to a folder or a model hub."""
    from tasks import console, record
    from tasks.publish import publish as run
    from tasks.units import counted, size

    if state is not None and pointer is not None:
        raise UserError("say which state: T, or --pointer NAME")
    project = options.project()
    name, form = options.timeline(project, timeline), record.Form(library.value, dtype)
    published = record.find(project, name, state) if state else record.pointed(project, name, pointer or "deployed")
    with console.shown() as progress:
        done = run(published, to, form, progress)
    for note in done.notes:
        errors.print(f"note: {note}")
    if as_json:
        print_json({
            "tag": done.state.tag, "where": done.where, "commit": done.commit, "files": done.files, "bytes": done.bytes,
        })  # fmt: skip
        return
    at = f", commit {done.commit}" if done.commit else ""
    out.print(f"{done.state.tag} is published in {done.where}{at}: {counted(done.files, 'file')}, {size(done.bytes)}")
