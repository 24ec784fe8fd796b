"""What people and servers do with the pointer: promote a state, hold one, fetch the deployed weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tasks import layout
from tasks.errors import UserError
from tasks.record import delivery, operations, promotion, restore, retention, states, worktree
from tasks.record.states import State
from tasks.storage import dvc_config, writer_lock
from tasks.storage.cache import Cache
from tasks.storage.dvc import Dvc
from tasks.storage.objects import Depot


@dataclass(frozen=True)
class Decided:
    """What became of a decision."""

    state: State
    changed: bool
    deployed: State | None


def decide(project: Path, timeline: str, name: str, *, promoted: bool, reason: str | None) -> Decided:
    """Promote or hold a state by hand, also while a run is under way; the pointer moves with the decision.

    Raises:
        UserError: there is no such state, it cannot be held or promoted, or somebody else was first.
    """
    place = layout.place_of(name)
    timeline = place.timeline if place else timeline
    with writer_lock.present(project):
        shared = operations.store_of(project, timeline).git
        if shared:
            worktree.require_not_checked_out(project, timeline)
            states.synchronize(project, timeline, shared)
        state = states.find(project, timeline, name)
        moved = promotion.decide(state, promoted=promoted, reason=reason, shared=shared)
        return Decided(state, moved is not None, moved or states.deployed(project, timeline))


@dataclass(frozen=True)
class Fetched:
    """The deployed state in a folder: new there or not, and how many bytes came from the remote."""

    state: State
    folder: Path
    new: bool
    fetched: int


def fetch(project: Path, timeline: str, to: Path) -> Fetched:
    """Have the weights of the deployed state in a folder.

    Raises:
        UserError: no state is deployed, its weights cannot be had, or the folder is one of ours.
        RemoteError: the store breaks off.
    """
    folder = to.resolve()
    restore.require_elsewhere(project, folder)
    shared = operations.store_of(project, timeline).git
    if shared:
        states.follow(project, timeline, shared)
    state = states.deployed(project, timeline)
    if state is None:
        raise UserError(
            f"timeline {timeline!r} has no deployed state here; in a clone, `git fetch --tags --force` brings it"
        )
    if delivery.is_there(state, folder):
        return Fetched(state, folder, new=False, fetched=0)
    cache = Cache(dvc_config.cache_dir(project))
    cache.drop_damaged(state.entries[layout.DEPLOYED])  # comes from the remote
    with operations.opened_for(project, [(state, (layout.DEPLOYED, layout.HISTORY))]) as remote:
        if remote is None:
            return Fetched(state, folder, new=True, fetched=delivery.deliver(state, folder, cache, None))
        with Dvc(project) as dvc:
            depot = Depot(project, cache, remote, dvc)
            try:
                return Fetched(state, folder, new=True, fetched=delivery.deliver(state, folder, cache, depot))
            except UserError:
                retention.require_weights(state)
                raise
