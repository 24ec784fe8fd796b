"""Commit a new state at a single point in time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from tasks import layout
from tasks.errors import UserError
from tasks.record import heads, names, sharing, timelines
from tasks.record import pointers as named_pointers
from tasks.record.heads import Heads
from tasks.record.state import State
from tasks.record.timelines import promoted_state
from tasks.storage.git import GitError, git, identity, is_ancestor, resolve


def commit(
    worktree: Path,
    project: Path,
    timeline: str,
    step: int,
    previous: State | None,
    code: str,
    message: str,
    shared: str | None,
    agree: Callable[[State], None] = lambda _: None,
    *,
    promoted: bool = True,
    pointers: Collection[str] = (),
) -> State:
    """Make state ``step`` of what lies in a worktree, after ``previous`` and on its line; see `make`.

    Raises:
        UserError: another writer recorded this step first, or the git remote cannot be reached.
    """
    there = [path for path in layout.RECORDED if path not in layout.OPTIONAL or (worktree / path).exists()]
    git(worktree, "add", "--force", "--", *there)
    parents = [*([previous.commit] if previous else []), code]
    line = previous.line if previous else 1
    tree = git(worktree, "write-tree")
    return make(
        project, timeline, step, line, tree, parents, message, shared, agree, promoted=promoted, pointers=pointers
    )


def make(
    project: Path,
    timeline: str,
    step: int,
    line: int,
    tree: str,
    parents: Sequence[str],
    message: str,
    shared: str | None,
    agree: Callable[[State], None] = lambda _: None,
    *,
    promoted: bool = True,
    pointers: Collection[str] | None = None,
) -> State:
    """Make a state of a tree: its commit, then branch, tag and pointers in one transaction.

    That transaction is the commit point, and a compare-and-swap: it fails if anybody moved the branch or decided
    anything. With a ``shared`` git remote the push comes first, atomic and fast-forward only, so that of several
    machines one wins; a crash between the two is mended by `synchronize`. Without one, ``agree`` asks whoever else must
    (`claim.take`). The deployed pointer goes to the state where it is ``promoted``, else to the newest that is; those
    of ``pointers`` go to it too. None: the lineage is another from here on, and all go where they belong in it.

    Raises:
        UserError: another writer was first, or the git remote cannot be reached.
    """
    flags = [part for parent in dict.fromkeys(parents) for part in ("-p", parent)]
    old = heads.local(project, timeline)
    made = git(project, "commit-tree", tree, *flags, stdin=message, env=identity(project))
    state = State(project, timeline, step, made, line)
    overtaken = UserError(f"somebody else recorded in timeline {timeline!r} meanwhile; run again to continue there")
    if old.branch and not is_ancestor(project, old.branch, made):
        raise overtaken
    target = state if promoted else promoted_state(project, timeline, old.decisions)
    if pointers is None:
        recorded = [*timelines.states(project, timeline), state]
        named = named_pointers.places(project, recorded, timelines.leading_to(state, recorded), old.decisions)
    else:
        named = tuple(sorted({**dict(old.named), **dict.fromkeys(pointers, made)}.items()))
    new = Heads(made, target.commit if target else None, old.decisions, named)
    if shared:
        sharing.publish(state, new, old, shared)
    agree(state)
    tag = names.tag(timeline, step, line)
    try:
        heads.move(project, timeline, old, new, creating=(tag, made))
    except GitError as error:
        if resolve(project, tag) or heads.local(project, timeline) != old:
            raise overtaken from None
        raise UserError(f"git cannot record {state.tag}: {error}; finished work stays for the next run") from None
    return state
