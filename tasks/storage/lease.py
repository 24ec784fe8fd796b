"""Which machine records a state, where several share an S3 store and no git remote.

The store is then what they have in common, and decides by conditional writes; see `tasks.storage.conditional`:

- ``writing/X`` is a lease: the machine that writes to timeline X renews it. It spares the others the work, no more: a
  lease that is not renewed is taken over, and a machine that only slept may wake up afterwards.
- ``claims/state/X/0003`` registers which commit this state is. It is written last before git's own transaction, by the
  first machine and for good, so that of all machines one records the state. After a crash between the two, the same
  repository may register another commit. It also tells `chronomerge gc` that objects belong to another repository.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from tasks import layout
from tasks.errors import UserError
from tasks.params import Store
from tasks.storage import embedded, locks
from tasks.storage.conditional import NoteStore, StoredNote
from tasks.storage.dvc import RemoteError
from tasks.storage.dvc_config import EMBEDDED, Remote
from tasks.storage.git import common_dir

SILENT_SECONDS = 120.0
"""A lease that was not renewed for so long is free."""
POLL_SECONDS = 2.0


class Commit(Protocol):
    """What the store registers of a state."""

    @property
    def project(self) -> Path: ...

    @property
    def tag(self) -> str: ...

    @property
    def commit(self) -> str: ...


def needed(settings: Store, remote: Remote) -> bool:
    """Whether the store decides: a shared git remote does it where there is one."""
    return remote.is_s3 and not settings.git


def agreement(settings: Store, remote: Remote) -> Callable[[Commit], None]:
    """What to call before git's own transaction records a state: `take` where it is `needed`, else nothing."""
    return functools.partial(take, remote) if needed(settings, remote) else lambda _: None


@contextlib.contextmanager
def writing(project: Path, remote: Remote, timeline: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a timeline for writing among all that use the store; the caller holds it in this repository already.

    Raises:
        UserError: another machine holds it (and ``wait`` is false); or the store knows no conditional writes.
        RemoteError: the store cannot be reached.
    """
    notes = NoteStore(remote)
    notes.require_conditional_writes()
    key, repository = f"writing/{timeline}", _repository(project, remote)
    note = {**_who(), "repository": repository, "beat": secrets.token_hex(8)}
    while not (tag := notes.put(key, note)):
        held = notes.get(key)
        if held is None:
            continue
        if held.note["repository"] == repository or held.age > SILENT_SECONDS:  # a dead run of ours, or of another
            tag = notes.put(key, note, instead_of=held.tag)
            if tag:
                break
        elif not wait:
            raise UserError(
                f"timeline {timeline!r} is being written by process {held.note['pid']} on {held.note['host']} since "
                f"{held.note['at']}, says {notes.where}; wait for it to end, or run with --wait "
                f"(its lease is free once it was not renewed for {SILENT_SECONDS:.0f} s)"
            )
        else:
            time.sleep(POLL_SECONDS)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew_until, args=(notes, key, note, tag, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with contextlib.suppress(RemoteError):  # the lease runs out by itself
            held = notes.get(key)
            if held and held.note["repository"] == repository:
                notes.delete(key)


def _renew_until(notes: NoteStore, key: str, note: dict[str, Any], tag: str, ended: threading.Event) -> None:
    """Renew a lease. A failure is made up for by the next time; another machine's note in its place ends it."""
    while not ended.wait(SILENT_SECONDS / 4):
        note = {**note, "beat": secrets.token_hex(8)}  # other bytes, so another tag: a takeover sees the renewal
        with contextlib.suppress(RemoteError):
            renewed = notes.put(key, note, instead_of=tag)
            if not renewed:  # taken over; or renewed by a request whose answer was lost
                held = notes.get(key)
                if held is None or held.note != note:
                    return
                renewed = held.tag
            tag = renewed


def take(remote: Remote, state: Commit) -> None:
    """Register the commit of a state, before git's own transaction; to register it again changes nothing.

    Raises:
        UserError: the state is another commit, of another repository; says whose, and the way out.
        RemoteError: the store cannot be reached.
    """
    notes, repository = NoteStore(remote), _repository(state.project, remote)
    note = {**_who(), "repository": repository, "commit": state.commit}
    key = _registration(state.tag)
    while not notes.put(key, note):
        held = notes.get(key)
        if held is None:
            continue
        if held.note["commit"] == state.commit:
            return
        if held.note["repository"] != repository:
            raise _taken(notes, state.tag, held)
        if notes.put(key, note, instead_of=held.tag):  # registered before a crash, or dropped since
            return


def require_free(project: Path, remote: Remote, tag: str) -> None:
    """Look, before any work, whether another repository has recorded a state.

    Raises:
        UserError: it has; says which, and the way out.
        RemoteError: the store cannot be reached.
    """
    notes = NoteStore(remote)
    held = notes.get(_registration(tag))
    if held and held.note["repository"] != _repository(project, remote):
        raise _taken(notes, tag, held)


def strangers(project: Path, remote: Remote, known: Collection[str]) -> list[str]:
    """What other repositories have in the store, or do there now, a sentence each; states at ``known`` commits aside.

    Raises:
        RemoteError: the store cannot be reached.
    """
    notes, repository = NoteStore(remote), _repository(project, remote)
    others = []
    for name in notes.names():
        held = notes.get(name)
        if held is None or held.note.get("repository") in (None, repository):
            continue
        kind, _, what = name.partition("/")
        if kind == "writing" and held.age <= SILENT_SECONDS:
            others.append(f"{held.note['host']} is writing to timeline {what!r}")
        elif kind == "claims" and held.note["commit"] not in known:
            others.append(f"{held.note['host']} recorded {what}, which is not here")
    return others


def _registration(tag: str) -> str:
    return f"claims/{tag}"


def _taken(notes: NoteStore, tag: str, held: StoredNote) -> UserError:
    return UserError(
        f"{tag} is another machine's already: {held.note['host']} recorded it at {held.note['at']} as commit "
        f"{held.note['commit'][:10]}, says {notes.where}; fetch its states and their tags through git, or give this "
        f"timeline another name in params.yaml (if they are lost for good, delete {notes.address(_registration(tag))})"
    )


def _who() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "at": datetime.now(UTC).isoformat(timespec="seconds")}


def _repository(project: Path, remote: Remote) -> str:
    """A name that this repository has alone.

    A copy of a repository (``cp -a``) is another one and gets another name, unless its store was copied with it.
    """
    common = common_dir(project)
    path, place = common / "chronomerge" / "repository.json", f"{socket.gethostname()}:{common}"
    copied_too = remote.name == EMBEDDED and embedded.folder(project) == layout.private(project) / "store"
    path.parent.mkdir(exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        locks.acquire(file)  # runs of two timelines may both be the first
        file.seek(0)
        try:
            note = json.load(file)
        except ValueError:  # new, or torn by a loss of power
            note = None
        if note and (note["place"] == place or copied_too):
            return str(note["name"])
        name = secrets.token_hex(16)
        file.truncate(0)
        json.dump({"name": name, "place": place}, file)
    return name
