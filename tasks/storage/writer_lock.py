"""One writer to a timeline: an flock that dies with its holder, and a note that says who that is."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tasks.errors import UserError
from tasks.storage import git


@contextmanager
def writing(project: Path, timeline: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a timeline for writing, across all worktrees of the repository.

    Raises:
        UserError: somebody else holds it (and ``wait`` is false); names host, process id and since when.
    """
    folder = _folder(project)
    # The file stays: unlinking a lock file lets two processes lock two files of one name.
    with present(project, wait=wait), (folder / f"{timeline}.lock").open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait:
                    raise UserError(
                        f"timeline {timeline!r} is being written by {_holder(file.name)}; "
                        "wait for it to end, or run with --wait"
                    ) from None
                time.sleep(0.2)
        file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": since}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextmanager
def present(project: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep `alone` out while the block lasts.

    Raises:
        UserError: objects are being deleted right now (and ``wait`` is false).
    """
    with (_folder(project) / "in-use").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError("`chronomerge gc` is deleting objects of this repository; try again when it ends") from None
        yield


@contextmanager
def alone(project: Path) -> Iterator[None]:
    """Nobody writes to any timeline of the repository, in any of its worktrees, while the block lasts.

    Raises:
        UserError: somebody does; names who.
    """
    with (_folder(project) / "in-use").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy = [f"timeline {name!r} by {who}" for name in timelines(project) if (who := holder(project, name))]
            raise UserError(
                f"this repository is in use ({'; '.join(busy) or 'by another chronomerge'}); try again when that ends"
            ) from None
        yield


def timelines(project: Path) -> list[str]:
    """The timelines that anybody has ever written to here."""
    return sorted(path.stem for path in _folder(project).glob("*.lock"))


def _folder(project: Path) -> Path:
    folder = git.common_dir(project) / "chronomerge"
    folder.mkdir(exist_ok=True)
    return folder


def holder(project: Path, timeline: str) -> str | None:
    """Who writes to a timeline now, in words, or None."""
    path = git.common_dir(project) / "chronomerge" / f"{timeline}.lock"
    if not path.exists():
        return None
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(file.name)
    return None


def _holder(path: str) -> str:
    """The note in a held lock file; its writer may not have written it yet."""
    text = Path(path).read_text()
    if not text:
        return "another process"
    note = json.loads(text)
    return f"process {note['pid']} on {note['host']} since {note['since']}"
