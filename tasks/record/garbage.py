"""Garbage: objects in cache and remote that nothing refers to. `plan` finds them, `sweep` deletes them.

What is referred to: all states of all timelines (but for weights let go, see `tasks.record.retention`), whatever DVC
finds in the project's other branches, tags and working trees, and what nodes have finished that no state has yet.
Only objects that were listed and found without use are deleted, never "all but"; and listings of folders go first.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from tasks import references
from tasks.errors import UserError
from tasks.record import retention, timelines, worktrees
from tasks.record.state import State
from tasks.storage import dvc_config, objects
from tasks.storage.cache import Entry
from tasks.storage.git import git
from tasks.storage.objects import Depot, StoredObject

UNFINISHED = timedelta(days=30)
"""How long the outputs of finished nodes wait for a run to record their step: one that crashed can be taken up."""
YOUNG = timedelta(days=1)
"""Objects of a shared remote are left alone for so long: another machine may be about to record them."""


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep deletes, and what it spares and why; objects are md5 → bytes."""

    cache: Mapping[str, int]
    remote: Mapping[str, int]
    letting_go: tuple[State, ...]
    staying: tuple[str, ...]
    """A sentence for each state that was to let its weights go, but stays complete."""
    unfinished: Mapping[str, int]
    """Kept in the cache for runs that have not ended."""
    young: Mapping[str, int]
    """Kept in the remote: written less than `YOUNG` ago."""
    only_here: Mapping[str, int]
    """Kept in the cache: weights of older states that the remote lacks."""


def readable(project: Path) -> list[State]:
    """All states; where one cannot be read, nobody can tell what it refers to."""
    recorded = timelines.every(project)
    for state in recorded:
        if damaged := state.unreadable():
            raise UserError(f"{state.tag}: {', '.join(damaged)} cannot be read; `chronomerge doctor` says more")
    return recorded


def plan(depot: Depot, *, keep_last: int | None, keep_tags: Collection[str], everywhere: bool) -> SweepPlan:
    """Find what nothing refers to; deletes nothing.

    With neither ``keep_last`` nor ``keep_tags`` all states stay complete. Weights of older states go from the cache
    alone, where the remote has them, or ``everywhere``: then they are let go for good.

    Raises:
        UserError: what a state refers to cannot be told, or the cache may have other users.
    """
    project = depot.project
    _require_own_cache(depot)
    going, staying = retention.choose(project, keep_last, keep_tags) if keep_last or keep_tags else ([], [])
    here, _ = objects.in_cache(depot.cache)
    there = objects.in_remote(depot)
    recorded = readable(project)
    gone = set(retention.let_go(project))
    complete = {state: retention.held(state, gone) for state in recorded}
    listed = _listed(complete, depot)
    leaving = gone | {state.commit for state in going}
    kept = _objects(listed, (e for state in recorded for e in retention.held(state, leaving).values()))
    kept |= _metrics(recorded) | _used(depot, recorded)
    unfinished = _unfinished(depot, recorded) - kept
    kept |= unfinished
    weights = _objects(listed, (entry for entries in complete.values() for entry in entries.values())) - kept
    idle = {md5: about for md5, about in there.items() if md5 not in kept}
    young = {} if depot.remote.name == dvc_config.EMBEDDED else _younger(idle, weights)
    only_here = {md5 for md5 in weights & here.keys() if not everywhere and not _same(here[md5], there.get(md5))}
    return SweepPlan(
        cache={md5: about.size for md5, about in here.items() if md5 not in kept | only_here},
        remote={md5: about.size for md5, about in idle.items() if md5 not in young},
        letting_go=tuple(going),
        staying=tuple(staying),
        unfinished={md5: here[md5].size for md5 in unfinished & here.keys()},
        young=young,
        only_here={md5: here[md5].size for md5 in only_here},
    )


def sweep(depot: Depot, plan: SweepPlan, shared: Iterable[str], *, everywhere: bool) -> None:
    """Delete what a plan found: from the cache, and with ``everywhere`` from the remote too.

    Which states let their weights go is noted, and pushed, first. So whenever this is killed, the store holds all that
    it is said to hold, and the next sweep goes on.

    Raises:
        UserError: a git remote does not take the notes; nothing is deleted then.
        RemoteError: the remote does not delete; the cache is as it was.
    """
    if everywhere:
        retention.note(depot.project, plan.letting_go)
        for remote in shared:
            retention.push_notes(depot.project, remote)
        if plan.remote:
            depot.discard(plan.remote)
    for md5 in sorted(plan.cache, key=lambda md5: not md5.endswith(".dir")):
        depot.cache.path(md5).unlink(missing_ok=True)


def _require_own_cache(depot: Depot) -> None:
    """A cache outside the repository may serve others, whose references nobody can know here."""
    folder = depot.cache.folder.resolve()
    homes = [tree.resolve() for tree in worktrees.folders(depot.project)]
    if not any(folder.is_relative_to(home) for home in homes):
        raise UserError(
            f"the DVC cache {folder} lies outside this repository and may serve others too; "
            "`dvc gc --projects` frees a cache that several share"
        )


def _listed(wanted: Mapping[State, Mapping[str, Entry]], depot: Depot) -> dict[str, set[str]]:
    """The members of all folders; it must be known what a state refers to, or nothing can be called garbage."""
    folders = {entry.md5 for entries in wanted.values() for entry in entries.values() if entry.is_folder}
    listed = objects.members(folders, depot)
    for state, entries in wanted.items():
        for path, entry in entries.items():
            if entry.is_folder and entry.md5 not in listed:
                raise UserError(
                    f"{state.tag}: the list of files in {path} (object {entry.md5}) is neither in the cache nor in the "
                    "remote, so nobody can tell what is garbage; `chronomerge doctor` says more"
                )
    return {md5: set(files.values()) for md5, files in listed.items()}


def _objects(listed: Mapping[str, set[str]], entries: Iterable[Entry]) -> set[str]:
    named: set[str] = set()
    for entry in entries:
        named |= {entry.md5, *listed.get(entry.md5, ())}
    return named


def _metrics(recorded: Iterable[State]) -> set[str]:
    """Metrics lie in git; the copies that nodes leave in the cache are small, and serve timelines of equal keys."""
    return {entry.md5 for state in recorded for path, entry in state.manifest.outputs.items()
            if path not in state.entries}  # fmt: skip


def _used(depot: Depot, recorded: Iterable[State]) -> set[str]:
    """What DVC finds in all else that git knows: branches, tags, stashes, and working trees with their changes."""
    project, known = depot.project, {state.commit for state in recorded}
    peeled = "%(if)%(*objecttype)%(then)%(*objecttype) %(*objectname)%(else)%(objecttype) %(objectname)%(end)"
    rows = (row.split() for row in git(project, "for-each-ref", f"--format={peeled} %(refname)").splitlines())
    commits = {
        name for kind, name, ref in rows if kind == "commit" and not ref.startswith(("refs/notes/", "refs/decisions/"))
    }
    revisions = sorted(commits - known)
    used: set[str] = set()
    for tree in worktrees.folders(project):
        ask = revisions if tree == project else []
        used |= set(depot.dvc("used", tree, remote=depot.remote.name, revisions=ask)["objects"])
    return used


def _unfinished(depot: Depot, recorded: Iterable[State]) -> set[str]:
    """The outputs of finished nodes that no state has, and that a run would take up again (see `UNFINISHED`)."""
    done = {(path, entry.md5) for state in recorded for path, entry in state.manifest.outputs.items()}
    waiting = [
        entry
        for tree in worktrees.folders(depot.project)
        for reference in references.recent(tree, UNFINISHED)
        if not done.issuperset((path, entry.md5) for path, entry in reference.outs.items())
        for entry in reference.outs.values()
    ]
    listed = objects.members({entry.md5 for entry in waiting if entry.is_folder}, depot)
    return _objects({md5: set(files.values()) for md5, files in listed.items()}, waiting)


def _younger(idle: Mapping[str, StoredObject], weights: Collection[str]) -> dict[str, int]:
    """What may be on its way into a state of another machine; weights that are let go are not."""
    since = time.time() - YOUNG.total_seconds()
    return {md5: about.size for md5, about in idle.items() if md5 not in weights and about.modified > since}


def _same(here: StoredObject, there: StoredObject | None) -> bool:
    return there is not None and here.size == there.size
