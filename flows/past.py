"""What people do with recorded states: bring one back, go back to one. The store is opened only where it is needed."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tasks.cache import Cache
from tasks.params import load
from tasks.record import config, layout, lock, store, worktree
from tasks.record import restore as restoring
from tasks.record import rollback as rolling
from tasks.record import states as recorded
from tasks.record.restore import Restored
from tasks.record.states import State


def restore(project: Path, timeline: str, name: str, to: Path | None) -> Restored:
    """Restore a state, by default into a folder beside the project."""
    state = recorded.find(project, timeline, name)
    folder = to.absolute() if to else restoring.default_folder(project, state)
    with contextlib.ExitStack() as stack:
        remote = None
        if restoring.missing(state, Cache(config.cache_dir(project))):
            remote = stack.enter_context(store.open_store(project, state.params["store"]["remote"]))
        return restoring.restore(project, state, folder, remote)


def rollback(project: Path, timeline: str, name: str, *, wait: bool) -> tuple[State, State | None]:
    """Go back to a state; returns it and the state that now stands for it, None where it is the newest anyway."""
    place = layout.place_of(name)
    timeline = place.timeline if place else timeline
    with lock.writing(project, timeline, wait=wait):
        worktree.require_not_checked_out(project, timeline)
        worktree.clean_up(project, timeline)
        shared = _git_remote(project, timeline)
        if shared:
            recorded.synchronize(project, timeline, shared)
        state = recorded.find(project, timeline, name)
        return state, rolling.rollback(project, state, shared)


def _git_remote(project: Path, timeline: str) -> str | None:
    """The git remote that a timeline's states are pushed to: as params.yaml says, else as its newest state does."""
    params = load(project / "params.yaml")
    if params.timeline == timeline:
        return params.store.git
    newest = recorded.last(project, timeline)
    return newest.params["store"]["git"] if newest else None
