"""Going back: an earlier state becomes the newest again, on a line of its own, and nothing is forgotten.

Tags of states never move and the branch only goes forward, so that other machines can follow. A rollback is therefore
a state like any other: the tree of the one gone back to, its manifest with a new line and what was left behind, no new
bytes. It is promoted, so the pointer goes back with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from tasks import layout
from tasks.params import Store, load
from tasks.record import commits, manifest, names, restoration, sharing, stores, timelines, worktrees
from tasks.record.manifest import RecordedWithdrawal
from tasks.record.state import State
from tasks.storage import dvc_config, lease, locks, store
from tasks.storage.cache import Cache
from tasks.storage.dvc import Dvc
from tasks.storage.git import git


def rollback(
    project: Path, timeline: str, name: str, *, wait: bool, withdrawal: RecordedWithdrawal | None = None
) -> tuple[State, State | None]:
    """Go back to a state; returns it and the state that now stands for it, None where it is the newest anyway.

    ``withdrawal`` says why, where an arrival is taken out.

    Raises:
        UserError: the timeline is being written; there is no such state; or its data cannot be had.
    """
    place = names.parse(name)
    timeline = place.timeline if place else timeline
    with locks.writing(project, timeline, wait=wait):
        worktrees.require_not_checked_out(project, timeline)
        worktrees.clean_up(project, timeline)
        settings = load(project / "params.yaml").store
        if settings.git:
            sharing.synchronize(project, timeline, settings.git)
        state = timelines.find(project, timeline, name)
        if is_newest(state):
            return state, None
        with _agreeing(project, settings, timeline, wait=wait) as agree:
            _bring(project, state)
            return state, go_back(project, state, settings.git, agree, withdrawal)


@contextlib.contextmanager
def _agreeing(project: Path, settings: Store, timeline: str, *, wait: bool) -> Iterator[Callable[[State], None]]:
    """Hold a timeline in its store where machines agree there; yields how they agree on a new state."""
    if settings.git:
        yield lambda _: None
        return
    with store.open_store(project, settings.remote) as remote, contextlib.ExitStack() as stack:
        if lease.needed(settings, remote):
            stack.enter_context(lease.writing(project, remote, timeline, wait=wait))
        yield lease.agreement(settings, remote)


def _bring(project: Path, state: State) -> None:
    """Have all of a state in the cache: what cannot be had is no place to go on from."""
    with stores.opened_for(project, [(state, state.entries)]) as remote:
        if remote:
            with Dvc(project) as dvc, worktrees.of_state(project, state, remote) as there:
                restoration.fetch(state, Cache(dvc_config.cache_dir(project)), dvc, there)


def is_newest(state: State) -> bool:
    """Whether this is the newest state anyway, or the same one on another line."""
    newest = timelines.last(state.project, state.timeline)
    return newest is not None and _origin(newest) == _origin(state)


def go_back(
    project: Path,
    to: State,
    shared: str | None,
    agree: Callable[[State], None] = lambda _: None,
    withdrawal: RecordedWithdrawal | None = None,
) -> State:
    """Make a state the newest of its timeline again: the next step starts from it.

    The caller holds the timeline's lock, and has brought the states of the ``shared`` git remote, if there is one;
    ``agree`` is `tasks.record.commits.make`'s.

    Raises:
        UserError: another writer was first, or the git remote cannot be reached.
    """
    newest = timelines.last(project, to.timeline)
    assert newest, f"{to.tag} is recorded, so there is a newest state"
    line = newest.line + 1
    made = {
        # Whoever goes back to a state wants it: it is promoted, whatever the gate said of it once.
        **{key: value for key, value in to.manifest.as_dict().items() if key not in ("gate", "pointers")},
        "version": manifest.VERSION,
        "line": line,
        "bytes": {**to.manifest.bytes.as_dict(), "new": 0},
        "rollback": {
            "to": to.tag,
            "from": newest.tag,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
        },
    }
    known = {(one.arrival, one.state) for one in to.manifest.withdrawals}
    if withdrawal and (withdrawal.arrival, withdrawal.state) not in known:
        made["withdrawals"] = [*made.get("withdrawals", ()), withdrawal.as_dict()]
    tree = _with_manifest(project, to, manifest.text(manifest.read(json.dumps(made), to.tag)))
    message = (
        f"state {to.timeline} {Path(names.short_tag(to.timeline, to.step, line)).name}: back to {to.tag}\n\n"
        f"Line {line} starts here; {newest.tag} and what led to it stay on the lines before.\n"
    )
    return commits.make(project, to.timeline, to.step, line, tree, [newest.commit, to.commit], message, shared, agree)


def _origin(state: State) -> str:
    """The tag under which a state's bytes were recorded first."""
    while rolled_back := state.manifest.rollback:
        state = timelines.find(state.project, state.timeline, rolled_back.to)
    return state.tag


def _with_manifest(project: Path, state: State, text: str) -> str:
    """The tree of a state with another manifest, put together in an index of its own."""
    index = layout.private(project) / "tmp" / f"index-{os.getpid()}"
    index.parent.mkdir(parents=True, exist_ok=True)
    env = {"GIT_INDEX_FILE": str(index)}
    try:
        git(project, "read-tree", state.commit, env=env)
        blob = git(project, "hash-object", "-w", "--stdin", stdin=text)
        git(project, "update-index", "--cacheinfo", f"100644,{blob},manifest.json", env=env)
        return git(project, "write-tree", env=env)
    finally:
        index.unlink(missing_ok=True)
