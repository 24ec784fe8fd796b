"""The process that serves a project: a file that it locks, so that no other serves it and all can read which does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from tasks import layout
from tasks.errors import UserError
from tasks.storage import jsonfile, locks


@dataclass(frozen=True)
class Serving:
    """A process that serves a project, its Prefect server, and the timeline in params.yaml."""

    host: str
    pid: int
    since: str
    url: str
    timeline: str


def serving(project: Path) -> Serving | None:
    """The process that serves a project now; None if there is none, or it has not started its server yet."""
    path = _path(project)
    if not path.exists() or not locks.is_held(path):
        return None
    if not path.read_bytes():
        return None
    return jsonfile.read(path, lambda note: Serving(**note), "end the process that serves, and serve again")


@contextmanager
def alone(project: Path) -> Iterator[TextIO]:
    """Hold the lock of the process that serves a project; the yielded file is for `write`.

    Raises:
        UserError: another process serves the project; the message names it.
    """
    path = _path(project)
    path.parent.mkdir(exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not locks.acquire(file, wait=False):
            who = serving(project)
            by = f"process {who.pid} on {who.host} since {who.since}" if who else "another process"
            raise UserError(f"{project} is served by {by}; end that process first")
        file.truncate(0)
        try:
            yield file
        finally:
            file.truncate(0)


def write(file: TextIO, serving: Serving) -> None:
    """Write the process that serves."""
    file.truncate(0)
    json.dump(asdict(serving), file)
    file.flush()


def _path(project: Path) -> Path:
    return layout.private(project) / "serve.json"
