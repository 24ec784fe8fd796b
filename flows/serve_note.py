"""Who serves a project: a file that is locked while somebody does, so that nobody else does and all can tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from tasks import layout
from tasks.errors import UserError
from tasks.storage import locks


@dataclass(frozen=True)
class Serving:
    """A process that serves a project, its Prefect server, and the timeline it has found in params.yaml."""

    host: str
    pid: int
    since: str
    url: str
    timeline: str


def serving(project: Path) -> Serving | None:
    """Who serves a project now; None where nobody does, or has not come up yet."""
    path = _path(project)
    if not path.exists() or not locks.is_held(path):
        return None
    text = path.read_text()
    return Serving(**json.loads(text)) if text else None


@contextmanager
def alone(project: Path) -> Iterator[TextIO]:
    """Be the one who serves a project; the file is for `write`.

    Raises:
        UserError: somebody else is; says who.
    """
    path = _path(project)
    path.parent.mkdir(exist_ok=True)
    with path.open("a+") as file:
        if not locks.acquire(file, wait=False):
            who = serving(project)
            by = f"process {who.pid} on {who.host} since {who.since}" if who else "another process"
            raise UserError(f"{project} is being served by {by}; end that first")
        file.truncate(0)
        try:
            yield file
        finally:
            file.truncate(0)


def write(file: TextIO, serving: Serving) -> None:
    """Say who serves."""
    file.truncate(0)
    json.dump(asdict(serving), file)
    file.flush()


def _path(project: Path) -> Path:
    return layout.private(project) / "serve.json"
