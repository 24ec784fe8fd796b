"""A node as a command: ``python -m tasks.NODE`` in a project folder, as ``dvc.yaml`` calls it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import UserError
from tasks.params import Params, load
from tasks.progress import Progress
from tasks.text import one_line, redacted

EVERY = 10.0
"""Seconds between progress lines where there is no terminal."""


def main(node: Callable[[Path, Params, Progress], None]) -> None:
    """Run ``node`` in the current directory with its ``params.yaml``.

    Exits with status 2 and one line on stderr for whatever the user can mend.
    """
    try:
        with shown() as progress:
            node(Path(), load(Path("params.yaml")), progress)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def shown() -> Iterator[Progress]:
    """Progress on stderr: bars on a terminal, else a line now and then; a line for what has finished."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    what, note = (TextColumn(field, markup=False) for field in ("{task.description}", "{task.fields[note]}"))
    columns = (what, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note)
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    with Bars(*columns, console=console, transient=True) as bars:
        running: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int, note: str = "") -> None:
            what, note = _shown(what), _shown(note)
            if what not in running:
                running[what] = bars.add_task(what, total=total, note=note)
            bars.update(running[what], completed=done, total=total, note=note)
            if done == total:
                bars.remove_task(running.pop(what))
                console.print(_line(what, done, total, note))

        yield show


def _lines() -> Progress:
    last: dict[str, float] = {}

    def show(what: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if done == total or now - last.setdefault(what, now) >= EVERY:
            last[what] = now
            print(_line(what, done, total, note), file=sys.stderr, flush=True)

    return show


def _line(what: str, done: int, total: int, note: str) -> str:
    count = f" {done}/{total}" if total > 1 else ""
    return f"{_shown(what)}{count} {_shown(note)}".rstrip()


def _shown(text: str) -> str:
    return one_line(redacted(text))
