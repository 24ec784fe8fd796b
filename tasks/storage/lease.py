"""Several machines with one S3 store and no git remote between them agree in the store who records what.

Beside the data, under ``.chronomerge/`` of the remote, lie two kinds of small objects, made by S3's conditional writes:

- ``writing/X``: who writes to timeline X now, renewed while that lasts. It spares the others the work, no more: one
  that has gone silent is taken over, and a machine that only slept may wake up afterwards.
- ``claims/state/X/0003``: which commit this state is. It is made last before git's own transaction, by whoever is
  first and for good, so that of all machines one records the state. A crash between the two leaves a claim that the
  same repository makes again.
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
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import layout
from tasks.errors import UserError
from tasks.params import Store
from tasks.storage import embedded, locks, store
from tasks.storage.dvc import RemoteError
from tasks.storage.dvc_config import EMBEDDED, Remote
from tasks.storage.git import common_dir

if TYPE_CHECKING:
    from tasks.record import State

SILENT_SECONDS = 120.0
"""After so long without a sign of life, a writer counts as dead."""
POLL_SECONDS = 2.0
_REFUSED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_UNKNOWN = {"NotImplemented", "501"}


def needed(settings: Store, remote: Remote) -> bool:
    """Whether the store is what machines agree in: a shared git remote does it where there is one."""
    return remote.is_s3 and not settings.git


def agreement(settings: Store, remote: Remote) -> Callable[[State], None]:
    """How a new state is agreed on before git's own transaction: by `take`, where it is `needed`."""
    return functools.partial(take, remote) if needed(settings, remote) else lambda _: None


@contextlib.contextmanager
def writing(project: Path, remote: Remote, timeline: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a timeline for writing among all that use the store; the caller holds it in this repository already.

    Raises:
        UserError: another machine holds it (and ``wait`` is false); or the store knows no conditional writes.
        RemoteError: the store cannot be reached.
    """
    objects = _Objects(remote)
    objects.require_conditional_writes()
    key, repository = f"writing/{timeline}", _repository(project, remote)
    note = {**_who(), "repository": repository, "beat": secrets.token_hex(8)}
    while not (tag := objects.put(key, note)):
        held = objects.get(key)
        if held is None:
            continue
        if held.note["repository"] == repository or held.age > SILENT_SECONDS:  # a dead run of ours, or of another
            tag = objects.put(key, note, instead_of=held.tag)
            if tag:
                break
        elif not wait:
            raise UserError(
                f"timeline {timeline!r} is being written by process {held.note['pid']} on {held.note['host']} since "
                f"{held.note['at']}, says {objects.where}; wait for it to end, or run with --wait "
                f"(after {SILENT_SECONDS:.0f} s without a sign of life it counts as dead)"
            )
        else:
            time.sleep(POLL_SECONDS)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(objects, key, note, tag, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(RemoteError):  # it will count as dead
            held = objects.get(key)
            if held and held.note["repository"] == repository:
                objects.delete(key)


def _beat(objects: _Objects, key: str, note: dict[str, Any], tag: str, ended: threading.Event) -> None:
    """Give signs of life. One that fails is made up for by the next; another's note in our place ends them."""
    while not ended.wait(SILENT_SECONDS / 4):
        note = {**note, "beat": secrets.token_hex(8)}  # other bytes, another tag: a takeover sees that we live
        with contextlib.suppress(RemoteError):
            renewed = objects.put(key, note, instead_of=tag)
            if not renewed:  # taken over; or renewed by a request whose answer was lost
                held = objects.get(key)
                if held is None or held.note != note:
                    return
                renewed = held.tag
            tag = renewed


def take(remote: Remote, state: State) -> None:
    """Claim a state for its commit; to be called before git's own transaction, and again as often as one likes.

    Raises:
        UserError: the state is another commit, of another repository; says whose, and the way out.
        RemoteError: the store cannot be reached.
    """
    objects, repository = _Objects(remote), _repository(state.project, remote)
    note = {**_who(), "repository": repository, "commit": state.commit}
    key = _claim(state.tag)
    while not objects.put(key, note):
        held = objects.get(key)
        if held is None:
            continue
        if held.note["commit"] == state.commit:
            return
        if held.note["repository"] != repository:
            raise _taken(objects, state.tag, held)
        if objects.put(key, note, instead_of=held.tag):  # claimed before a crash, or dropped since
            return


def require_free(project: Path, remote: Remote, tag: str) -> None:
    """Look, before any work, whether another repository has recorded a state.

    Raises:
        UserError: it has; says which, and the way out.
        RemoteError: the store cannot be reached.
    """
    objects = _Objects(remote)
    held = objects.get(_claim(tag))
    if held and held.note["repository"] != _repository(project, remote):
        raise _taken(objects, tag, held)


def strangers(project: Path, remote: Remote, known: Collection[str]) -> list[str]:
    """What other repositories have in the store, or do there now, a sentence each; states at ``known`` commits aside.

    Raises:
        RemoteError: the store cannot be reached.
    """
    objects, repository = _Objects(remote), _repository(project, remote)
    found = []
    for name in objects.names():
        held = objects.get(name)
        if held is None or held.note.get("repository") in (None, repository):
            continue
        kind, _, what = name.partition("/")
        if kind == "writing" and held.age <= SILENT_SECONDS:
            found.append(f"{held.note['host']} is writing to timeline {what!r}")
        elif kind == "claims" and held.note["commit"] not in known:
            found.append(f"{held.note['host']} recorded {what}, which is not here")
    return found


def _claim(tag: str) -> str:
    return f"claims/{tag}"


def _taken(objects: _Objects, tag: str, held: _Held) -> UserError:
    return UserError(
        f"{tag} is another machine's already: {held.note['host']} recorded it at {held.note['at']} as commit "
        f"{held.note['commit'][:10]}, says {objects.where}; fetch its states and their tags through git, or give this "
        f"timeline another name in params.yaml (if they are lost for good, delete {objects.address(_claim(tag))})"
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
    with path.open("a+") as file:
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


@dataclass(frozen=True)
class _Held:
    """A note in the store, its ETag, and its age in seconds by the store's own clock."""

    note: dict[str, Any]
    tag: str
    age: float


class _Objects:
    """The notes of a remote: JSON objects under its ``.chronomerge/``, written on conditions."""

    def __init__(self, remote: Remote):
        self._remote, self._s3, self.where = remote, store.client(remote), store.described(remote)

    def _key(self, name: str) -> str:
        return self._remote.key(".chronomerge", name)

    def address(self, name: str) -> str:
        return f"s3://{self._remote.bucket}/{self._key(name)}"

    def put(self, name: str, note: dict[str, Any], instead_of: str | None = None) -> str | None:
        """Write a note where there is none, or in the place of one known by its ETag; returns the new one's ETag, or
        None where the condition does not hold."""
        condition: Any = {"IfMatch": instead_of} if instead_of else {"IfNoneMatch": "*"}
        with self._talking():
            try:
                body = json.dumps(note).encode()
                made = self._s3.put_object(Bucket=self._remote.bucket, Key=self._key(name), Body=body, **condition)
            except self._s3.exceptions.ClientError as error:
                if _code(error) in _REFUSED or (instead_of and _code(error) in store.ABSENT):
                    return None
                raise
        return made["ETag"]

    def get(self, name: str) -> _Held | None:
        with self._talking():
            try:
                found = self._s3.get_object(Bucket=self._remote.bucket, Key=self._key(name))
            except self._s3.exceptions.ClientError as error:
                if _code(error) in store.ABSENT:
                    return None
                raise
            note = json.loads(found["Body"].read())
        now = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
        return _Held(note, found["ETag"], (now - found["LastModified"]).total_seconds())

    def names(self) -> list[str]:
        folder = self._key("") + "/"
        with self._talking():
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._remote.bucket, Prefix=folder)
            return [found["Key"].removeprefix(folder) for page in pages for found in page.get("Contents", ())]

    def delete(self, name: str) -> None:
        with self._talking():
            self._s3.delete_object(Bucket=self._remote.bucket, Key=self._key(name))

    def require_conditional_writes(self) -> None:
        """Try whether the store honours the conditions: one that ignores them would let two machines be first.

        Raises:
            UserError: it does not.
        """
        probe = f"probe-{secrets.token_hex(8)}"
        try:
            self.put(probe, {"probe": 1})
            honoured = not self.put(probe, {"probe": 2}) and not self.put(probe, {"probe": 3}, f'"{"0" * 32}"')
        except _NotImplementedError:
            honoured = False
        finally:
            self.delete(probe)
        if not honoured:
            raise UserError(
                f"{self.where} ignores S3's conditional writes (If-None-Match), so two machines could record the same "
                "state in it; name a git remote in store.git (a bare repository in a folder will do), which then "
                "decides who is first, or use another store"
            )

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            if _code(error) in _UNKNOWN:
                raise _NotImplementedError from None
            raise RemoteError(f"{self.where} {store.reason(error)}") from None
        except (BotoCoreError, ValueError) as error:
            raise RemoteError(f"{self.where} cannot be reached: {store.reason(error)}") from None


class _NotImplementedError(Exception):
    """The store knows no conditional writes."""


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "?"))
