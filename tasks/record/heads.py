"""What moves in git as a timeline grows: its branch, its pointer and its decisions, always together.

The pointer is the tag at the deployed state, decisions are what people have said by hand. Which state is deployed
follows from states and decisions alone, so whoever changes either must have seen both: a transaction checks all three.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


def _refs(timeline: str) -> tuple[str, str, str]:
    return names.branch(timeline), names.pointer(timeline), names.decisions(timeline)


def local(project: Path, timeline: str) -> Heads:
    """The heads as this repository has them."""
    refs = _refs(timeline)
    rows = git(project, "for-each-ref", "--format=%(objectname) %(refname)", *refs).splitlines()
    commits = {name: value for value, name in (row.split(" ") for row in rows)}
    return Heads(*(commits.get(ref) for ref in refs))


def shared(project: Path, timeline: str, remote: str) -> Heads:
    """The heads as a git remote has them.

    Raises:
        GitError: it cannot be reached.
        UserError: no remote of that name is configured.
    """
    require_remote(project, remote)
    refs = _refs(timeline)
    rows = git(project, "ls-remote", "--", remote, *refs).splitlines()
    commits = {name: value for value, name in (row.split("\t") for row in rows)}
    return Heads(*(commits.get(ref) for ref in refs))


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
    for ref, before, after in zip(_refs(timeline), _values(old), _values(new), strict=True):
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

    Branch and decisions only go forward. The pointer may go back, so it moves only from where it was ``seen``.

    Raises:
        GitError: another machine was first, or the remote cannot be reached.
    """
    require_remote(project, remote)
    branch, pointer, decisions = _refs(timeline)
    pairs = ((new.branch, branch), (new.pointer, pointer), (new.decisions, decisions))
    refs = [f"{value}:{ref}" for value, ref in pairs if value]
    lease = f"--force-with-lease={pointer}:{seen.pointer or ''}"
    git(project, "push", "--quiet", "--atomic", lease, "--", remote, *refs, *tags)


def _values(heads: Heads) -> tuple[str | None, str | None, str | None]:
    return heads.branch, heads.pointer, heads.decisions
