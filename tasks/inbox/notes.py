"""What has become of drops, so that each is dealt with once: a small file for each in ``.chronomerge/inbox``.

The notes are no more than a memory. That a drop was taken is also told by the stream and by its files' pointer, so one
that was lost, or never written, makes the next scan look twice and take nothing twice.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks import layout
from tasks.storage import atomic, locks


class DropNote(BaseModel):
    """What became of one drop."""

    model_config = ConfigDict(frozen=True)

    place: str
    drop: str
    signature: str
    """As it was seen last."""
    content: str
    """Of what was taken or refused."""
    outcome: Literal["taken", "refused"]
    arrival: str
    """The arrival that it is, or would have been."""
    report: str | None = None
    changed: bool = False
    """Whether it has been seen since with other content than was taken."""


def one_at_a_time(project: Path) -> AbstractContextManager[None]:
    """Only one process at a time looks through a project's inboxes; others wait."""
    return locks.exclusive(_home(project) / "lock")


def read(project: Path, place: str, drop: str) -> DropNote | None:
    """The note on a drop; None where there is none that can be read."""
    try:
        return DropNote.model_validate_json(_path(project, place, drop).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def write(project: Path, note: DropNote) -> None:
    """Write a note, whole or not at all."""
    atomic.write(_path(project, note.place, note.drop), note.model_dump_json(indent=1) + "\n")


def _home(project: Path) -> Path:
    return layout.private(project) / "inbox"


def _path(project: Path, place: str, drop: str) -> Path:
    return _home(project) / f"{hashlib.sha256(f'{place}/{drop}'.encode()).hexdigest()[:24]}.json"
