"""Locks between processes: the kernel's (flock), so that they die with their holders.

The library filelock offers no shared locks of the kernel, and a lock file alone survives a killed holder; so these few
lines are our own. A lock file is never deleted: two processes could then each lock a file of that name.

A repository has one writer for each timeline (`writing`, with a note that says who that is), and any number of
processes that use its objects (`using`) as long as none deletes them (`alone`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from tasks.errors import UserError
from tasks.storage import git

POLL_SECONDS = 0.2


def acquire(file: IO[Any], *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file until it is closed; False where another process holds it and ``wait`` is false.

    ``shared`` locks go together; a lock that this file holds already is changed to the kind that is asked for.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file alone, once its holder has let go; the file and its folder are made, and stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        acquire(file)
        yield


def is_held(path: Path, *, shared: bool = False) -> bool:
    """Whether another process holds a lock file now: alone or, with ``shared``, in any way. It is made if missing."""
    with _opened(path) as file:
        return not acquire(file, shared=not shared, wait=False)


@contextmanager
def writing(project: Path, timeline: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a timeline for writing, across all worktrees of the repository.

    Raises:
        UserError: somebody else holds it (and ``wait`` is false); names host, process id and since when.
    """
    with using(project, wait=wait), (_folder(project) / f"{timeline}.lock").open("a+", encoding="utf-8") as file:
        while not acquire(file, wait=False):
            if not wait:
                raise UserError(
                    f"timeline {timeline!r} is being written by {_noted(Path(file.name))}; "
                    "wait for it to end, or run with --wait"
                )
            time.sleep(POLL_SECONDS)
        file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": since}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def holder(project: Path, timeline: str) -> str | None:
    """Who writes to a timeline now, in words, or None."""
    path = git.common_dir(project) / "chronomerge" / f"{timeline}.lock"
    return _noted(path) if path.exists() and is_held(path) else None


def timelines(project: Path) -> list[str]:
    """The timelines that any process has ever written to in this repository."""
    return sorted(path.stem for path in _folder(project).glob("*.lock"))


@contextmanager
def using(project: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep `alone` out while the block lasts.

    Raises:
        UserError: objects are being deleted right now (and ``wait`` is false).
    """
    with (_folder(project) / "in-use").open("a+", encoding="utf-8") as file:
        if not acquire(file, shared=True, wait=wait):
            raise UserError("`chronomerge gc` is deleting objects of this repository; try again when it ends")
        yield


@contextmanager
def alone(project: Path) -> Iterator[None]:
    """No process writes to any timeline of the repository, in any of its worktrees, while the block lasts.

    Raises:
        UserError: one does; says which.
    """
    with (_folder(project) / "in-use").open("a+", encoding="utf-8") as file:
        if not acquire(file, wait=False):
            busy = [f"timeline {name!r} by {who}" for name in timelines(project) if (who := holder(project, name))]
            raise UserError(
                f"this repository is in use ({'; '.join(busy) or 'by another chronomerge'}); try again when that ends"
            )
        yield


def _opened(path: Path) -> IO[Any]:
    """A lock file to ask about; a reader of a project need not be allowed to write to it."""
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS):
            raise
        return path.open("rb")


def _folder(project: Path) -> Path:
    folder = git.common_dir(project) / "chronomerge"
    folder.mkdir(exist_ok=True)
    return folder


def _noted(path: Path) -> str:
    """The note in a held lock file; its writer may not have written it completely yet."""
    try:
        note = json.loads(path.read_bytes())
        return f"process {note['pid']} on {note['host']} since {note['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
