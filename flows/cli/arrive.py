"""``chronomerge arrive`` and ``chronomerge inbox``: what arrives, checked and put into the stream."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import options
from flows.cli.options import AsJson, OnMismatch
from flows.cli.terminal import out, print_json
from tasks.errors import UserError

if TYPE_CHECKING:
    from tasks.inbox import Scan

DryRun = Annotated[bool, typer.Option("--dry-run", help="Check, and change nothing.")]


def arrive(
    name: Annotated[str, typer.Argument(help="The arrival's name: it becomes a folder, and a line of the stream.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="A folder or file of images, a table or a tar file, here or s3://…, recognised by what it is; or a "
            "source as params.yaml writes it (icons:food/new, table:a.csv, {source: table, path: a.csv, label: kind}). "
            "Repeatable.",
        ),
    ] = None,
    expert: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A model trained elsewhere, or an adapter: a file or folder, here, s3://… or hf:ORG/NAME[@REVISION].",
        ),
    ] = None,
    on_mismatch: Annotated[
        OnMismatch,
        typer.Option(help="An expert's tensor of another shape than the base's: refuse, or take the base's."),
    ] = OnMismatch.error,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Check data or an expert in full, keep it under DVC, and append it to the stream; status 2 if it is refused."""
    from tasks import arrive as arriving
    from tasks import console

    project = options.project()
    sources = tuple(_from_here(one, project) for one in data or ())
    request = arriving.Request(name, sources, expert and _from_here(expert, project), on_mismatch.value)
    with console.shown() as progress:
        verdict = arriving.arrive(project, request, progress, dry_run=dry_run)
    if as_json:
        print_json(verdict.as_dict())
    else:
        for line in verdict.lines():
            out.print(line)
    if verdict.refused:
        raise typer.Exit(2)


def _from_here(given: str, project: Path) -> str:
    """A path of the current folder, as one that starts where those of params.yaml do; all else as it is."""
    from tasks.arrive import without_part

    path, part = without_part(given)
    if "\0" in path:
        raise UserError(f"{given!r}: a path cannot hold a null character; choose another name")
    whole = Path(os.path.realpath(os.path.expanduser(path)))  # noqa: PTH111 - Path's raise on ~nobody and on loops
    if not whole.exists():
        return given
    return f"{whole.relative_to(project) if whole.is_relative_to(project) else whole}{part}"


def inbox(
    where: Annotated[str, typer.Argument(metavar="PATH|s3://BUCKET/PREFIX", help="Where drops lie, a folder each.")],
    watch: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=1, help="Look again, so long after each look, until stopped.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Let every finished drop arrive once: a folder with READY or arrival.yaml in it; status 2 if one was refused."""
    from tasks import console
    from tasks import inbox as inboxes
    from tasks.storage.dvc import RemoteError

    project = options.project()
    where = _from_here(where, project)

    def look(*, everything: bool) -> Scan:
        with console.shown() as progress:
            scanned = inboxes.scan(project, where, progress, dry_run=dry_run)
        if as_json:
            typer.echo(json.dumps(scanned.as_dict()))  # on one line: a program may read them as they come
        else:
            _print(scanned, everything=everything)
        return scanned

    if watch is None:
        raise typer.Exit(2 if look(everything=True).refused else 0)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is open gets closed
    try:
        while True:
            try:
                look(everything=False)
            except (UserError, RemoteError) as error:  # a store may be down, params.yaml half edited
                out.print(f"not now: {error}")
            time.sleep(watch)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _print(scanned: Scan, *, everything: bool) -> None:
    """What a look came to; of many looks, only what is new."""
    for one in [*scanned.taken, *scanned.refused]:
        assert one.verdict
        for line in one.verdict.lines():
            out.print(line)
    if everything:
        for one in [*scanned.changed, *scanned.known, *scanned.waiting]:
            out.print(f"{one.name}: {one.why}")
        counts = {
            "taken": scanned.taken,
            "refused": scanned.refused,
            "changed": scanned.changed,
            "known": scanned.known,
        }
        said = ", ".join(f"{len(drops)} {kind}" for kind, drops in {**counts, "waiting": scanned.waiting}.items())
        out.print(f"{scanned.where}: {said}")
