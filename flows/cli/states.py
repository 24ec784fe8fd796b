"""The verbs for recorded states: ``states``, ``restore``, ``verify`` and ``rollback``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli import options
from flows.cli.options import NAME, AsJson, Name, Timeline, Wait
from flows.cli.terminal import out, print_json


def states(
    all_lines: Annotated[bool, typer.Option("--all", help="What rollbacks left behind, too.")] = False,
    diff: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="What changed between two states instead.")
    ] = None,
    as_json: AsJson = False,
    timeline: Timeline = None,
) -> None:
    """The recorded states of a timeline."""
    from flows.cli import comparison, tables
    from tasks import record

    project = options.project()
    name = options.timeline(project, timeline)
    if diff:
        difference = record.compare(*(record.find(project, name, one) for one in diff))
        print_json(comparison.row(difference)) if as_json else out.print(comparison.table(difference))
    elif as_json:
        print_json(tables.states_rows(project, name, all_lines=all_lines))
    else:
        out.print(tables.states_table(project, name, all_lines=all_lines))


def restore(
    state: Name,
    to: Annotated[Path | None, typer.Option(help="An empty or new folder; by default one beside the project.")] = None,
    timeline: Timeline = None,
) -> None:
    """Bring a state back, bit for bit, in a folder of its own; out of the cache, or the remote."""
    from tasks import record
    from tasks.units import size

    project = options.project()
    restored = record.restore(project, options.timeline(project, timeline), state, to)
    source = f"{size(restored.fetched)} fetched from the remote" if restored.fetched else "all from the cache"
    for path in restored.damaged:
        out.print(f"{path} of {restored.state.tag} was damaged in the cache, and was fetched again", soft_wrap=True)
    out.print(f"{restored.state.tag} is in {restored.folder} ({source})", soft_wrap=True)


def leave(
    branch: Annotated[str | None, typer.Argument(help="The branch to go to; by default the one before.")] = None,
) -> None:
    """Leave a state that `git checkout` brought here: back to a branch, the state's data removed."""
    from tasks import record

    left = record.leave(options.project(), branch)
    out.print(f"{left.state.tag} is left: branch {left.branch}, {len(left.removed)} paths of its data removed")


def verify(
    state: Annotated[str | None, NAME] = None,
    every: Annotated[bool, typer.Option("--all", help="Every state of the timeline, of all its lines.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read what is stored, in cache and store; run nothing.")
    ] = False,
    as_json: AsJson = False,
    timeline: Timeline = None,
) -> None:
    """Run a state's nodes again with its own recorded code, compare every hash, read its bytes in the cache; status 1
    if anything is not as recorded."""
    from flows.cli import verification
    from tasks import console, record

    project = options.project()
    states = record.chosen(project, options.timeline(project, timeline), state, every=every)
    with console.shown() as progress:
        if quick:
            stored = record.check_stored(project, states, progress)
            same = all(one.same for one in stored.values())
            rows, lines = verification.stored_rows(stored), list(verification.stored_lines(stored))
        else:
            run, left = record.worth_running(states) if every else (states, {})
            again = record.verify(project, run, progress)
            same = all(one.same for one in again)
            rows = [*map(verification.recomputed_row, again), *({"tag": tag, "left": why} for tag, why in left.items())]
            lines = [line for one in again for line in verification.recomputed_lines(one)]
            lines += [f"{tag}: not run again, for {why}" for tag, why in left.items()]
    if as_json:
        print_json(rows)
    else:
        out.print("\n".join(lines), soft_wrap=True)
    if not same:
        raise typer.Exit(1)


def rollback(state: Name, timeline: Timeline = None, wait: Wait = False) -> None:
    """Go back to a state: the next step starts from it; what came after stays, on a line of its own."""
    from flows.run import pending
    from tasks import record

    project = options.project()
    to, made = record.rollback(project, options.timeline(project, timeline), state, wait=wait)
    if made is None:
        out.print(
            f"nothing to do: {to.tag} is the newest state (chronomerge promote deploys one that is held)",
            soft_wrap=True,
        )
    else:
        left = made.manifest.rollback.left if made.manifest.rollback else ""
        out.print(
            f"{made.tag} is {to.tag} again, and step {made.step + 1} starts from it; {left} stays on line "
            f"{made.line - 1} (chronomerge states --all)",
            soft_wrap=True,
        )  # fmt: skip
        todo = None if timeline else pending(project)
        if todo and todo.steps:
            names = ", ".join(todo.params.stream[step - 1].name for step in todo.steps)
            out.print(f"params.yaml still has {names}: take out what the next run is not to bring back", soft_wrap=True)
