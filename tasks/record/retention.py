"""Letting go of old weights: which states keep only their records and data, and a note of it that every clone can have.

The note is a git note (``refs/notes/chronomerge``) on the state's commit. It is written, and pushed where the states
are shared, before the first byte goes; so whatever happens later, the store never lacks what no note excuses.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tasks import layout
from tasks.errors import UserError, first_problem
from tasks.record import heads, timelines, worktrees
from tasks.record.state import State
from tasks.storage.cache import Entry
from tasks.storage.git import GitError, git, require_remote, resolve

WEIGHTS = (
    layout.HISTORY, layout.INIT, layout.CODED_INIT, layout.EXPERT, layout.CODED_EXPERT, layout.RUNNING, layout.DEPLOYED,
    layout.ROUTED,
)  # fmt: skip
"""What a state lets go. Its raw and prepared data, test sets and training record stay, as do its files in git; the
pools in its history are the arrivals that it and earlier states keep."""

NOTES = "refs/notes/chronomerge"
_SEEN = "refs/notes/chronomerge-seen"
_IDENTITY = {
    f"GIT_{role}_{key}": value
    for role in ("AUTHOR", "COMMITTER")
    for key, value in {"NAME": "chronomerge", "EMAIL": "chronomerge@localhost"}.items()
}


@dataclass(frozen=True)
class LetGo:
    """When and where it was decided that a state's weights go (UTC; host name)."""

    at: str
    host: str


_LET_GO = TypeAdapter(LetGo)


def let_go(project: Path) -> dict[str, LetGo]:
    """The states that have let their weights go, by commit.

    Raises:
        UserError: a note is damaged.
    """
    rows = git(project, "notes", f"--ref={NOTES}", "list").splitlines()
    notes = {}
    for row in rows:
        blob, commit = row.split()
        try:
            notes[commit] = _LET_GO.validate_json(
                git(project, "cat-file", "blob", blob).partition("\n")[0], strict=True
            )
        except ValidationError as error:
            raise UserError(
                f"{NOTES}: the note on {commit[:10]} is damaged ({first_problem(error)}); "
                f"`git notes --ref={NOTES} remove {commit[:10]}` drops it"
            ) from None
    return notes


def note(project: Path, going: Iterable[State]) -> None:
    """Take down that states let their weights go; from here on nothing counts on them."""
    known = let_go(project)
    now = LetGo(datetime.now(UTC).isoformat(timespec="seconds"), socket.gethostname())
    for state in going:
        if state.commit not in known:
            git(project, "notes", f"--ref={NOTES}", "add", "-m", json.dumps(asdict(now)), state.commit, env=_IDENTITY)


def fetch_notes(project: Path, remote: str) -> None:
    """Take over the notes that a git remote has.

    Raises:
        GitError: it cannot be reached.
    """
    require_remote(project, remote)
    if git(project, "ls-remote", "--", remote, NOTES):
        git(project, "fetch", "--quiet", "--no-tags", "--", remote, f"+{NOTES}:{_SEEN}")
        git(project, "notes", f"--ref={NOTES}", "merge", "--quiet", "--strategy=cat_sort_uniq", _SEEN, env=_IDENTITY)


def push_notes(project: Path, remote: str) -> None:
    """Bring the notes of a git remote and ours together, there too.

    Raises:
        UserError: the remote did not take them.
    """
    try:
        fetch_notes(project, remote)
        if resolve(project, NOTES):
            git(project, "push", "--quiet", "--", remote, f"{NOTES}:{NOTES}")
    except GitError as error:
        raise UserError(f"store.git: git remote {remote!r} did not take the notes of weights let go: {error}") from None


def held(state: State, gone: Collection[str]) -> dict[str, Entry]:
    """What the store must hold of a state: all, or all but its weights where its commit is among those ``gone``."""
    return {path: e for path, e in state.entries.items() if state.commit not in gone or path not in WEIGHTS}


def require_weights(state: State) -> None:
    """Say so where a state has let its weights go, as far as the git remotes that can be reached know.

    Raises:
        UserError: it has; says when, and what is left.
    """
    for remote in git(state.project, "remote").splitlines():  # a clone does not bring notes by itself
        with contextlib.suppress(GitError):  # the caller has a complaint of its own
            fetch_notes(state.project, remote)
    note = let_go(state.project).get(state.commit)
    if note:
        raise UserError(
            f"{state.tag}: its weights were let go on {note.at} (chronomerge gc on {note.host}); its data, params, "
            f"metrics and manifest stay (git show {state.tag}:metrics.json); take another state"
        )


def choose(project: Path, keep_last: int | None, keep_tags: Collection[str]) -> tuple[list[State], list[str]]:
    """The states whose weights go, and a sentence for each that stays for another reason than was asked.

    Of each timeline its newest ``keep_last`` states stay (at least one: the next step starts from it), the deployed one
    (a server may ask for it, and the next step may start from it), those that a pointer is at, those tagged
    ``keep_tags``, and any that is checked out somewhere.

    Raises:
        UserError: a tag that is no state's.
    """
    recorded = {name: timelines.states(project, name) for name in timelines.timeline_names(project)}
    known = {state.tag for each in recorded.values() for state in each}
    for tag in keep_tags:
        if tag not in known:
            raise UserError(f"--keep-tag {tag}: no state has that tag; `git tag --list 'state/*'` lists them")
    gone, checked_out = let_go(project), _checked_out(project)
    going, reasons = [], []
    for timeline, each in recorded.items():
        deployed, pointed = timelines.deployed(project, timeline), heads.local(project, timeline).named
        for state in each[: -(keep_last or 1)]:
            if state.tag in keep_tags or state.commit in gone:
                continue
            if state == deployed:
                reasons.append(f"{state.tag} stays: it is deployed")
            elif pointers := [name for name, commit in pointed if commit == state.commit]:
                reasons.append(f"{state.tag} stays: a pointer is there ({', '.join(pointers)})")
            elif state.commit in checked_out:
                reasons.append(f"{state.tag} stays: it is checked out in {checked_out[state.commit]}")
            else:
                going.append(state)
    return going, reasons


def _checked_out(project: Path) -> dict[str, str]:
    """Commit → folder of the worktrees that exist."""
    return {commit: str(tree) for tree in worktrees.folders(project) if (commit := resolve(tree, "HEAD"))}
