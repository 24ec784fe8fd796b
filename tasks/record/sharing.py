"""States that several machines share through a git remote (``store.git``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tasks.errors import UnavailableError, UserError
from tasks.record import heads, names, pointers, timelines
from tasks.record.heads import Heads
from tasks.record.state import State
from tasks.record.timelines import last, promoted_state, states
from tasks.storage.git import GitError, git, is_ancestor


def synchronize(project: Path, timeline: str, shared: str) -> None:
    """Bring the states and decisions of other machines from a git remote, and push those it lacks.

    Raises:
        UnavailableError: the remote cannot be reached.
        UserError: the two hold different states of one step.
    """
    branch, seen = names.branch(timeline), f"refs/chronomerge/{shared}/{timeline}"
    tags = f"{names.tags(timeline)}*"
    try:
        there = heads.shared(project, timeline, shared)
        refs = [f"+{branch}:{seen}", f"{tags}:{tags}"] if there.branch else []
        refs += [names.decisions(timeline)] if there.decisions else []
        if refs:
            git(project, "fetch", "--quiet", "--no-tags", "--", shared, *refs)
    except GitError as error:
        raise UnavailableError(f"store.git: cannot take over states from git remote {shared!r}: {error}") from None
    here = heads.local(project, timeline)
    try:
        both = (_later(project, here.branch, there.branch), _later(project, here.decisions, there.decisions))
    except _TwoWays:
        raise UserError(
            f"store.git: timeline {timeline!r} has different states in this clone and on git remote {shared!r}; "
            f"give one of them another name (git branch -m, and its tags), or delete it"
        ) from None
    target = promoted_state(project, timeline, both[1])
    named = here.named
    if both != (here.branch, here.decisions) or there.named != here.named:
        recorded = states(project, timeline)
        named = pointers.places(project, recorded, timelines.lineage(project, timeline), both[1])
    here_too = Heads(both[0], target.commit if target else None, both[1], named)
    if here_too != here:
        heads.move(project, timeline, here, here_too)
    newest = last(project, timeline)
    if newest:
        wanted = replace(here_too, branch=newest.commit)
        if wanted != there:
            publish(newest, wanted, there, shared)


def follow(project: Path, timeline: str, shared: str) -> None:
    """Bring the states and the pointers of a git remote, as one who only reads: no branch moves, nothing is pushed.

    Raises:
        UnavailableError: the remote cannot be reached, or holds another state under a tag of ours.
    """
    tags, pointer = f"{names.tags(timeline)}*", names.pointer(timeline)
    others = names.named_pointers(timeline)
    try:
        there = heads.shared(project, timeline, shared)
        moved = [f"+{pointer}:{pointer}"] if there.pointer else []
        moved += [f"+{others}*:{others}*"] if there.named else []
        git(project, "fetch", "--quiet", "--no-tags", "--", shared, f"{tags}:{tags}", *moved)
        here = heads.local(project, timeline)
        left = tuple((name, commit) for name, commit in here.named if name in dict(there.named))
        heads.move(project, timeline, here, replace(here, named=left))  # without those that are gone there
    except GitError as error:
        raise UnavailableError(
            f"store.git: cannot ask git remote {shared!r} which state is deployed: {error}"
        ) from None


class _TwoWays(Exception):  # noqa: N818
    """Neither of two commits comes after the other."""


def _later(project: Path, one: str | None, other: str | None) -> str | None:
    """The one of two commits that comes after the other, or is the same.

    Raises:
        _TwoWays: neither does.
    """
    if one is None or other is None:
        return one or other
    if is_ancestor(project, one, other):
        return other
    if is_ancestor(project, other, one):
        return one
    raise _TwoWays


def publish(state: State, new: Heads, seen: Heads, remote: str) -> None:
    """Push a timeline up to a state, and all its tags, all or nothing; what is there already is fine."""
    recorded = states(state.project, state.timeline)
    older = [f"refs/tags/{one.tag}" for one in recorded if (one.line, one.step) < (state.line, state.step)]
    try:
        heads.push(state.project, state.timeline, new, seen, remote, [f"{state.commit}:refs/tags/{state.tag}", *older])
    except GitError as error:
        raise UserError(
            f"git remote {remote!r} did not take {state.tag}: {error}; if another machine was first, "
            "run again to go on from its state"
        ) from None
