"""Going back: an earlier state becomes the newest again, on a line of its own, and nothing is forgotten.

Tags of states never move and the branch only goes forward, so that other machines can follow. A rollback is therefore
a state like any other: the tree of the one gone back to, its manifest with a new line and what was left behind, no new
bytes. It is promoted, so the pointer goes back with it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tasks import layout
from tasks.record import manifest, states
from tasks.record.states import State
from tasks.storage.git import git


def is_newest(state: State) -> bool:
    """Whether this is the newest state anyway, or the same one on another line."""
    newest = states.last(state.project, state.timeline)
    return newest is not None and _origin(newest) == _origin(state)


def rollback(project: Path, to: State, shared: str | None, agree: Callable[[State], None] = lambda _: None) -> State:
    """Make a state the newest of its timeline again: the next step starts from it.

    The caller holds the timeline's lock, and has brought the states of the ``shared`` git remote, if there is one;
    ``agree`` is `tasks.record.states.make`'s.

    Raises:
        UserError: another writer was first, or the git remote cannot be reached.
    """
    newest = states.last(project, to.timeline)
    assert newest, f"{to.tag} is recorded, so there is a newest state"
    line = newest.line + 1
    made = {
        # Whoever goes back to a state wants it: it is promoted, whatever the gate said of it once.
        **{key: value for key, value in to.manifest.as_dict().items() if key != "gate"},
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
    tree = _with_manifest(project, to, manifest.text(manifest.read(json.dumps(made), to.tag)))
    message = (
        f"state {to.timeline} {Path(layout.short_tag(to.timeline, to.step, line)).name}: back to {to.tag}\n\n"
        f"Line {line} starts here; {newest.tag} and what led to it stay on the lines before.\n"
    )
    return states.make(project, to.timeline, to.step, line, tree, [newest.commit, to.commit], message, shared, agree)


def _origin(state: State) -> str:
    """The tag under which a state's bytes were recorded first."""
    while rolled_back := state.manifest.rollback:
        state = states.find(state.project, state.timeline, rolled_back.to)
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
