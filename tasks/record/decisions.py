"""What people have decided about states: promoted or held, whatever the gate said.

Each decision is a commit on a ref of the timeline (``refs/decisions/X``), with all decisions so far as its
``decisions.json``; so ``git log refs/decisions/X`` tells the story, and several machines can agree as on a branch.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tasks.errors import UserError, first_problem
from tasks.record import heads
from tasks.storage.git import git, identity, show

_Row = TypeVar("_Row")

_FILE = "decisions.json"


@dataclass(frozen=True)
class Decision:
    """What somebody decided about a state."""

    state: str
    """Its tag."""
    promoted: bool
    who: str
    host: str
    at: str
    """UTC, ISO 8601."""
    reason: str | None


_DECISIONS = TypeAdapter(list[Decision])


def made_now(state: str, reason: str | None, *, promoted: bool, project: Path) -> Decision:
    """A decision of the current user, now."""
    return Decision(state, promoted, *signature(project), reason)


def signature(project: Path) -> tuple[str, str, str]:
    """Who decides, on which host, and when."""
    return who(project), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds")


def who(project: Path) -> str:
    """As git calls the user, else as the system does."""
    if "GIT_AUTHOR_NAME" not in identity(project):
        return git(project, "var", "GIT_AUTHOR_IDENT").rpartition(">")[0] + ">"
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return f"user {os.getuid()}"


def read(project: Path, commit: str | None) -> list[Decision]:
    """All decisions up to a commit of their ref, the first one first.

    Raises:
        UserError: they are damaged.
    """
    return read_rows(project, commit, _FILE, _DECISIONS)


def latest(project: Path, commit: str | None) -> Mapping[str, Decision]:
    """The decision that counts on each state that somebody has decided on: tag → the last one."""
    return {decision.state: decision for decision in read(project, commit)}


def decided(project: Path, timeline: str) -> Mapping[str, Decision]:
    """The decision that counts on each state of a timeline: tag → the last one."""
    return latest(project, heads.local(project, timeline).decisions)


def add(project: Path, before: str | None, decision: Decision) -> str:
    """Make the commit of one more decision; no ref moves."""
    rows = [asdict(one) for one in (*read(project, before), decision)]
    subject = f"{'promote' if decision.promoted else 'hold'} {decision.state}"
    return commit(project, before, _FILE, rows, subject, decision.reason)


def read_rows(project: Path, commit: str | None, file: str, kind: TypeAdapter[list[_Row]]) -> list[_Row]:
    """What ``file`` holds at a commit of the decisions; nothing where there is no such commit, or no such file in it.

    Raises:
        UserError: it is damaged.
    """
    if commit is None or file not in git(project, "ls-tree", "--name-only", commit).splitlines():
        return []
    try:
        return kind.validate_json(show(project, commit, file), strict=True)
    except ValidationError as error:
        raise UserError(
            f"{file} of {commit[:10]} is damaged ({first_problem(error)}); `git log refs/decisions/TIMELINE` shows "
            "earlier ones"
        ) from None


def commit(
    project: Path, before: str | None, file: str, rows: Sequence[Mapping[str, Any]], subject: str, reason: str | None
) -> str:
    """Make the commit after ``before`` in which ``file`` holds ``rows`` and all else is as it was; no ref moves."""
    blob = git(project, "hash-object", "-w", "--stdin", stdin=json.dumps(rows, indent=1) + "\n")
    others = git(project, "ls-tree", before).splitlines() if before else []
    lines = [line for line in others if not line.endswith(f"\t{file}")]
    tree = git(project, "mktree", stdin="".join(f"{line}\n" for line in (*lines, f"100644 blob {blob}\t{file}")))
    parents = ["-p", before] if before else []
    message = f"{subject}\n" + (f"\n{reason}\n" if reason else "")
    return git(project, "commit-tree", tree, *parents, stdin=message, env=identity(project))
