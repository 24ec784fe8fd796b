"""What moves in git as a timeline grows: its branch, its pointers and its decisions, always together.

``pointer`` is the tag at the deployed state, ``named`` are the tags of other names (``champion``), decisions are what
people have said by hand. Where the pointers are follows from states and decisions alone, so whoever changes either must
have seen both: a transaction checks all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.record import names
from tasks.storage.git import git, require_remote


@dataclass(frozen=True)
class Heads:
    """Object ids; None where there is no such ref."""

    branch: str | None
    pointer: str | None
    decisions: str | None
    named: tuple[tuple[str, str], ...] = ()
    """Name → commit of every pointer but the deployed one, by name."""


def _refs(timeline: str, heads: Heads) -> dict[str, str | None]:
    named = {f"{names.named_pointers(timeline)}{name}": commit for name, commit in heads.named}
    return {
        names.branch(timeline): heads.branch,
        names.pointer(timeline): heads.pointer,
        names.decisions(timeline): heads.decisions,
        **named,
    }


def _read(timeline: str, refs: Mapping[str, str]) -> Heads:
    prefix = names.named_pointers(timeline)
    named = sorted((ref.removeprefix(prefix), value) for ref, value in refs.items() if ref.startswith(prefix))
    branch, pointer, decisions = (
        refs.get(ref) for ref in (names.branch(timeline), names.pointer(timeline), names.decisions(timeline))
    )
    return Heads(branch, pointer, decisions, tuple(named))


def _patterns(timeline: str) -> tuple[str, ...]:
    return (*_refs(timeline, Heads(None, None, None)), f"{names.named_pointers(timeline)}*")


def local(project: Path, timeline: str) -> Heads:
    """The heads as this repository has them."""
    rows = git(project, "for-each-ref", "--format=%(objectname) %(refname)", *_patterns(timeline)).splitlines()
    return _read(timeline, {name: value for value, name in (row.split(" ") for row in rows)})


def shared(project: Path, timeline: str, remote: str) -> Heads:
    """The heads as a git remote has them.

    Raises:
        GitError: it cannot be reached.
        UserError: no remote of that name is configured.
    """
    require_remote(project, remote)
    rows = git(project, "ls-remote", "--", remote, *_patterns(timeline)).splitlines()
    commits = {name: value for value, name in (row.split("\t") for row in rows) if not name.endswith("^{}")}
    return _read(timeline, commits)


def move(project: Path, timeline: str, old: Heads, new: Heads, *, creating: tuple[str, str] | None = None) -> None:
    """Move the heads in one transaction, which is a compare-and-swap: all of them or none, and only from ``old``.

    ``creating`` is a tag that must not exist yet, and its commit.

    Raises:
        GitError: one of them is not where it was; or git cannot write.
    """
    lines = [f"create {' '.join(creating)}"] if creating else []
    lines += _changes(timeline, old, new)
    git(project, "update-ref", "--stdin", stdin="\n".join(["start", *lines, "prepare", "commit", ""]))


def _changes(timeline: str, old: Heads, new: Heads) -> Iterator[str]:
    were, are = _refs(timeline, old), _refs(timeline, new)
    for ref in {**were, **are}:
        before, after = were.get(ref), are.get(ref)
        if before == after:
            yield f"verify {ref} {before or ''}".rstrip()  # without a value: that it is not there
        elif before is None:
            yield f"create {ref} {after}"
        elif after is None:
            yield f"delete {ref} {before}"
        else:
            yield f"update {ref} {after} {before}"


def push(project: Path, timeline: str, new: Heads, seen: Heads, remote: str, tags: Iterable[str]) -> None:
    """Push the heads and some refspecs of tags, all or nothing.

    Branch and decisions only go forward. Pointers may go back or away, so they move only from where they were ``seen``.

    Raises:
        GitError: another machine was first, or the remote cannot be reached.
    """
    require_remote(project, remote)
    were, are = _refs(timeline, seen), _refs(timeline, new)
    forward = {names.branch(timeline), names.decisions(timeline)}
    gone = [f":{ref}" for ref in were.keys() - are.keys()]
    refs = [f"{value}:{ref}" for ref, value in are.items() if value] + gone
    leases = [f"--force-with-lease={ref}:{were.get(ref) or ''}" for ref in {**were, **are} if ref not in forward]
    git(project, "push", "--quiet", "--atomic", *leases, "--", remote, *refs, *tags)
