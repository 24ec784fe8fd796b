"""Temporal states as git holds them: find them, read them, and commit a new one at a single point in time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks import layout
from tasks.errors import UnavailableError, UserError
from tasks.record import decisions, heads, manifest
from tasks.record.decisions import Decision
from tasks.record.heads import Heads
from tasks.record.manifest import Manifest
from tasks.storage.cache import Entry
from tasks.storage.git import GitError, git, identity, resolve, show


@dataclass(frozen=True)
class State:
    """One recorded state; its files are read from git when they are asked for."""

    project: Path
    timeline: str
    step: int
    commit: str
    line: int = 1
    """1, and one more after each rollback."""

    @property
    def tag(self) -> str:
        return layout.short_tag(self.timeline, self.step, self.line)

    @property
    def name(self) -> str:
        """The state as a person says it, within its timeline: ``3``, or ``3.2`` on the second line."""
        return f"{self.step}" + (f".{self.line}" if self.line > 1 else "")

    @cached_property
    def manifest(self) -> Manifest:
        return manifest.read(show(self.project, self.commit, manifest.FILE), self.tag)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return dict(json.loads(show(self.project, self.commit, "metrics.json")))

    @cached_property
    def params(self) -> dict[str, Any]:
        return dict(YAML(typ="safe").load(show(self.project, self.commit, "params.yaml")))

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Path → content of every input and output that DVC keeps, from ``dvc.lock`` and the ``.dvc`` files."""
        kept = [out for out in self._outs if out["path"] not in layout.RECORDED]  # metrics are kept by git
        return {out["path"]: Entry(out["md5"], out["size"], out.get("nfiles")) for out in kept}

    @property
    def locked(self) -> dict[str, str]:
        """Path → md5 of every input and output, metrics too, as DVC's files name them."""
        return {out["path"]: out["md5"] for out in self._outs}

    @property
    def contradictions(self) -> tuple[str, ...]:
        """Paths for which manifest.json and DVC's own files name different content: somebody has edited one of them."""
        named = {path: entry.md5 for path, entry in self.manifest.contents.items()}
        locked = self.locked
        return tuple(sorted(path for path in {*named, *locked} if named.get(path) != locked.get(path)))

    @cached_property
    def _outs(self) -> list[dict[str, Any]]:
        lock = YAML(typ="safe").load(show(self.project, self.commit, "dvc.lock"))
        outs = [out for stage in lock["stages"].values() for out in stage.get("outs", ())]
        for path in layout.INPUTS:
            pointer = YAML(typ="safe").load(show(self.project, self.commit, f"{path}.dvc"))
            outs.append({**pointer["outs"][0], "path": path})
        return outs

    def unreadable(self) -> dict[str, str]:
        """The record files that cannot be read, or lack what is read of them everywhere → why."""
        readers: dict[str, Callable[[], object]] = {
            manifest.FILE: lambda: self.manifest,
            "metrics.json": lambda: self.metrics["top1"],
            "params.yaml": lambda: self.params["store"]["git"],
            "dvc.lock": lambda: self.entries,
        }
        found = {}
        for name, read in readers.items():
            try:
                read()
            except Exception as error:  # whatever a damaged file makes a parser raise
                found[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        return found


def all_states(project: Path, timeline: str) -> list[State]:
    """Every state of a timeline in the order they were recorded: line by line, each by step."""
    pattern = f"refs/tags/state/{timeline}/*"
    rows = git(project, "for-each-ref", "--format=%(refname) %(objectname)", pattern).splitlines()
    found = ((layout.place_of(name), commit) for name, commit in (row.split() for row in rows))
    places = sorted((place, commit) for place, commit in found if place)
    return [State(project, timeline, place.step, commit, place.line) for place, commit in places]


def lineage(project: Path, timeline: str) -> list[State]:
    """What the newest state goes back to, step 0 first: all states, but for those that a rollback left behind.

    Raises:
        UserError: a state's predecessor has no tag here.
    """
    recorded = all_states(project, timeline)
    if not recorded or recorded[-1].line == 1:
        return recorded
    by_tag = {state.tag: state for state in recorded}
    found = [recorded[-1]]
    while previous := found[-1].manifest.previous:
        if previous not in by_tag:
            raise UserError(f"{found[-1].tag} goes back to {previous}, which is not here; `git fetch --tags` brings it")
        found.append(by_tag[previous])
    return found[::-1]


def timelines(project: Path) -> list[str]:
    """The timelines that have states."""
    rows = git(project, "for-each-ref", "--format=%(refname)", "refs/tags/state/**").splitlines()
    return sorted({row.removeprefix("refs/tags/state/").rpartition("/")[0] for row in rows})


def every(project: Path) -> list[State]:
    """All states of all timelines."""
    return [state for timeline in timelines(project) for state in all_states(project, timeline)]


def find(project: Path, timeline: str, name: str | int) -> State:
    """A state as a person names it.

    ``3`` is step 3 of the current lineage, ``3.2`` that of the second line (``3.1`` of the first, whatever came after),
    and a whole tag may be of any timeline.

    Raises:
        UserError: it is not recorded, or is no such name; says which are.
    """
    if place := layout.place_of(str(name)):
        timeline, step, line = place.timeline, place.step, place.line
    elif given := re.fullmatch(r"(\d+)(?:\.([1-9]\d*))?", str(name)):
        step, line = int(given[1]), int(given[2] or 0)
    else:
        raise UserError(
            f"{str(name)!r} names no state; say 3, 3.2 (step 3 on line 2) or {layout.short_tag(timeline, 3)}"
        )
    recorded = all_states(project, timeline)
    current = lineage(project, timeline)
    for state in recorded if line else current:
        if state.step == step and line in (0, state.line):
            return state
    there = f"0 to {current[-1].step}" if current else "none; in a clone, `git fetch --tags` brings them"
    elsewhere = [state.name if state.line > 1 else f"{step}.1" for state in recorded if state.step == step]
    if elsewhere:
        there += f", and {', '.join(elsewhere)} on other lines"
    raise UserError(f"timeline {timeline!r} has no state {name} (recorded: {there})")


def start_of(state: State) -> State | None:
    """The state that a state started from; None at step 0. Where held states are skipped, not the one before it."""
    tag = state.manifest.start
    return find(state.project, state.timeline, tag) if tag else None


def is_promoted(state: State, decided: Mapping[str, Decision]) -> bool:
    """Whether a state is promoted: as somebody decided (`decisions.latest`), else as the gate said when it was new."""
    if decision := decided.get(state.tag):
        return decision.promoted
    return state.manifest.promoted


def promoted_state(project: Path, timeline: str, decided: str | None) -> State | None:
    """The newest promoted state of the current lineage: where the pointer belongs, given a commit of the decisions."""
    by_hand = decisions.latest(project, decided)
    return next((state for state in reversed(lineage(project, timeline)) if is_promoted(state, by_hand)), None)


def deployed(project: Path, timeline: str) -> State | None:
    """The state that the pointer is at; where there is no pointer (states of before there were any), where it belongs.

    Raises:
        UserError: it is at no state of the timeline, which only a hand can have done.
    """
    found = heads.here(project, timeline)
    if found.pointer is None:
        return promoted_state(project, timeline, found.decisions)
    at = [state for state in all_states(project, timeline) if state.commit == found.pointer]
    if not at:
        raise UserError(
            f"tag deployed/{timeline} is at {found.pointer[:10]}, which is no state of the timeline; "
            "`chronomerge doctor --repair` puts it back; in a clone, `git fetch --tags --force` may bring what it lacks"
        )
    return at[0]


def last(project: Path, timeline: str) -> State | None:
    """The newest state, checked against the branch.

    A clone or a fetch brings tags without the branch, or newer ones than it: then the tags tell.

    Raises:
        UserError: the branch is somewhere else, which only a hand can have done.
    """
    recorded = all_states(project, timeline)
    head = resolve(project, layout.branch(timeline))
    newest = recorded[-1] if recorded else None
    if head and head not in {state.commit for state in recorded}:
        name = newest.tag if newest else "no tag"
        raise UserError(
            f"branch states/{timeline} is at {head[:10]}, but its newest state is {name}; "
            f"move the branch back (git update-ref) or delete what was made by hand"
        )
    return newest


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
) -> State:
    """Make state ``step`` of what lies in a worktree, after ``previous`` and on its line; see `make`.

    Raises:
        UserError: another writer recorded this step first, or the git remote cannot be reached.
    """
    git(worktree, "add", "--force", "--", *layout.RECORDED)
    parents = [*([previous.commit] if previous else []), code]
    line = previous.line if previous else 1
    tree = git(worktree, "write-tree")
    return make(project, timeline, step, line, tree, parents, message, shared, agree, promoted=promoted)


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
) -> State:
    """Make a state of a tree: its commit, then branch, tag and pointer in one transaction.

    That transaction is the commit point, and a compare-and-swap: it fails if anybody moved the branch or decided
    anything. With a ``shared`` git remote the push comes first, atomic and fast-forward only, so that of several
    machines one wins; a crash between the two is mended by `synchronize`. Without one, ``agree`` asks whoever else must
    (`claim.take`). The pointer goes to the state where it is ``promoted``, else to the newest that is.

    Raises:
        UserError: another writer was first, or the git remote cannot be reached.
    """
    flags = [part for parent in dict.fromkeys(parents) for part in ("-p", parent)]
    old = heads.here(project, timeline)
    made = git(project, "commit-tree", tree, *flags, stdin=message, env=identity(project))
    state = State(project, timeline, step, made, line)
    overtaken = UserError(f"somebody else recorded in timeline {timeline!r} meanwhile; run again to go on from there")
    if old.branch and not _is_ancestor(project, old.branch, made):
        raise overtaken
    target = state if promoted else promoted_state(project, timeline, old.decisions)
    new = Heads(made, target.commit if target else None, old.decisions)
    if shared:
        publish(state, new, old, shared)
    agree(state)
    tag = layout.tag(timeline, step, line)
    try:
        heads.move(project, timeline, old, new, creating=(tag, made))
    except GitError as error:
        if resolve(project, tag) or heads.here(project, timeline) != old:
            raise overtaken from None
        raise UserError(f"git cannot record {state.tag}: {error}; what has finished is kept for the next run") from None
    return state


def synchronize(project: Path, timeline: str, shared: str) -> None:
    """Bring the states and decisions of other machines from a git remote, and push those it lacks.

    Raises:
        UnavailableError: the remote cannot be reached.
        UserError: the two hold different states of one step.
    """
    branch, seen = layout.branch(timeline), f"refs/chronomerge/{shared}/{timeline}"
    tags = f"refs/tags/state/{timeline}/*"
    try:
        there = heads.there(project, timeline, shared)
        refs = [f"+{branch}:{seen}", f"{tags}:{tags}"] if there.branch else []
        refs += [layout.decisions(timeline)] if there.decisions else []
        if refs:
            git(project, "fetch", "--quiet", "--no-tags", shared, *refs)
    except GitError as error:
        raise UnavailableError(f"store.git: cannot take over states from git remote {shared!r}: {error}") from None
    here = heads.here(project, timeline)
    try:
        both = (_later(project, here.branch, there.branch), _later(project, here.decisions, there.decisions))
    except _TwoWays:
        raise UserError(
            f"store.git: timeline {timeline!r} has gone two ways, here and on git remote {shared!r}; "
            f"give one of them another name (git branch -m, and its tags), or delete it"
        ) from None
    target = promoted_state(project, timeline, both[1])
    here_too = Heads(both[0], target.commit if target else None, both[1])
    if here_too != here:
        heads.move(project, timeline, here, here_too)
    newest = last(project, timeline)
    if newest:
        wanted = replace(here_too, branch=newest.commit)
        if wanted != there:
            publish(newest, wanted, there, shared)


def follow(project: Path, timeline: str, shared: str) -> None:
    """Bring the states and the pointer of a git remote, as one who only reads: no branch moves, nothing is pushed.

    Raises:
        UnavailableError: the remote cannot be reached, or holds another state under a tag of ours.
    """
    tags, pointer = f"refs/tags/state/{timeline}/*", layout.pointer(timeline)
    try:
        there = heads.there(project, timeline, shared)
        moved = [f"+{pointer}:{pointer}"] if there.pointer else []
        git(project, "fetch", "--quiet", "--no-tags", shared, f"{tags}:{tags}", *moved)
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
    if _is_ancestor(project, one, other):
        return other
    if _is_ancestor(project, other, one):
        return one
    raise _TwoWays


def _is_ancestor(project: Path, older: str, newer: str) -> bool:
    """Whether one commit is another, or is among what led to it."""
    try:
        git(project, "merge-base", "--is-ancestor", older, newer)
    except GitError:
        return False
    return True


def publish(state: State, new: Heads, seen: Heads, remote: str) -> None:
    """Push a timeline up to a state, and all its tags, all or nothing; what is there already is fine."""
    recorded = all_states(state.project, state.timeline)
    older = [f"refs/tags/{one.tag}" for one in recorded if (one.line, one.step) < (state.line, state.step)]
    try:
        heads.push(state.project, state.timeline, new, seen, remote, [f"{state.commit}:refs/tags/{state.tag}", *older])
    except GitError as error:
        raise UserError(
            f"git remote {remote!r} did not take {state.tag}: {error}; if another machine was first, "
            "run again to go on from its state"
        ) from None
