"""Bring a state back: its files, bit for bit, in a folder of their own."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from tasks import layout
from tasks.errors import UserError
from tasks.model import coded
from tasks.record import foreign, retention, stores, timelines
from tasks.record.state import State
from tasks.record.stores import wanted
from tasks.record.worktrees import forget, remove
from tasks.storage import dvc_config, places
from tasks.storage.cache import Cache
from tasks.storage.dvc import Dvc, RemoteError
from tasks.storage.dvc_config import Remote
from tasks.storage.fetching import bring
from tasks.storage.git import common_dir, git


@dataclass(frozen=True)
class Restored:
    """Where a state was restored to, and how many bytes came from the remote (the rest was in the cache)."""

    state: State
    folder: Path
    fetched: int
    damaged: tuple[str, ...] = ()
    """Paths with wrong bytes in the cache; they came from the remote again."""


def restore(project: Path, timeline: str, name: str, to: Path | None) -> Restored:
    """Restore a state, by default into a folder beside the project."""
    state = timelines.find(project, timeline, name)
    folder = places.output(to, folder=True) if to else default_folder(project, state)
    cache = Cache(dvc_config.cache_dir(project))
    damaged = [path for path, entry in state.entries.items() if cache.drop_damaged(entry)]
    with stores.opened_for(project, [(state, state.entries)]) as remote:
        return replace(restore_into(project, state, folder, remote), damaged=tuple(damaged))


def default_folder(project: Path, state: State) -> Path:
    """Beside the project, named after project and state."""
    return project.parent / f"{project.name}-{state.timeline}-{Path(state.tag).name}"


def restore_into(project: Path, state: State, folder: Path, remote: Remote | None) -> Restored:
    """Check a state out into a new git worktree, with all its data; the folder appears once it is complete.

    Beside a coded expert lies the same as safetensors, which neither git nor DVC knows.

    ``remote`` may be None when the cache has everything (see `stores.missing`).

    Raises:
        UserError: the folder holds something already, or is ours; the state has a path that leads outside it; or the
            remote gave other bytes than the state names.
        RemoteError: the remote does not hold what the state refers to, or cannot be reached.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; name another folder with --to")
    require_elsewhere(project, folder)
    foreign.check(project, state.commit, state.tag)
    cache = Cache(dvc_config.cache_dir(project))
    part = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.part-*"):
        if not psutil.pid_exists(int(left.name.rpartition("-")[2])):
            remove(project, left)  # a restore that was killed
    forget(project, folder)  # restored there before, and deleted since
    git(project, "worktree", "add", "--quiet", "--detach", "--no-checkout", "--", str(part), state.commit)
    try:
        foreign.check_out(project, part, state.commit, state.tag)
        if remote:
            dvc_config.write_workspace(part, project, remote)
        # Never a symbolic link into the cache: on another file system, files are copied.
        dvc_config.write_local(part, {"cache": {"dir": str(cache.folder), "type": "hardlink,copy"}})
        with Dvc(project) as dvc:
            fetched = fetch(state, cache, dvc, part)
            dvc("checkout", part)
        if (part / layout.CODED_EXPERT).exists():
            coded.decode(part / layout.CODED_EXPERT, part / layout.BASE, part / layout.EXPERT)
        if folder.exists():
            folder.rmdir()  # empty, or this fails
        git(project, "worktree", "move", "--", str(part), str(folder))
    except BaseException:
        remove(project, part)
        raise
    return Restored(state, folder, fetched)


def require_elsewhere(project: Path, folder: Path) -> None:
    """Refuse to write into a project's own folders.

    Raises:
        UserError: the folder is in one of them.
    """
    for own in (layout.private(project), project / ".dvc", common_dir(project)):
        if folder.resolve().is_relative_to(own.resolve()):
            raise UserError(
                f"{folder} is in {own}, which is not for you to keep things in; name another folder with --to"
            )


def fetch(state: State, cache: Cache, dvc: Dvc, worktree: Path, only: Collection[str] | None = None) -> int:
    """Bring what the cache lacks of a state (of some paths of it) from the remote; returns bytes.

    What comes is hashed before it is trusted; wrong bytes are dropped, asked for again, and named in the end.
    ``worktree`` has the store as its default remote.

    Raises:
        UserError: the state let its weights go; or the store lacks an object, or gives wrong bytes for it every time.
        RemoteError: the store cannot be reached, or breaks off.
    """
    try:
        return bring(wanted(state, only), cache, dvc, worktree, state.tag)
    except (RemoteError, UserError):
        retention.require_weights(state)
        raise
