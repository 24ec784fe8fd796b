"""Leave a state that git and DVC checked out in the project: back to a branch, without the data of the state."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UserError
from tasks.record import timelines
from tasks.record.state import State
from tasks.storage.cache import hash_of
from tasks.storage.git import GitError, git, resolve


@dataclass(frozen=True)
class Left:
    """The state that was checked out, the branch that is now, and the paths of data that were removed."""

    state: State
    branch: str
    removed: tuple[str, ...]


def leave(project: Path, branch: str | None = None) -> Left:
    """Check out a branch (by default the one before the state) and remove the data of the state that was checked out.

    Only data with the state's own bytes is removed: cache and store keep it.

    Raises:
        UserError: no state is checked out; there is no such branch; or data was changed. Nothing is done then.
        GitError: git refuses, since files were changed.
    """
    head = resolve(project, "HEAD")
    state = next((one for one in timelines.every(project) if one.commit == head), None)
    if state is None:
        raise UserError("no state is checked out in this folder, so there is none to leave")
    target = branch or _branch_before(project)
    if target is None or resolve(project, f"refs/heads/{target}") is None:
        names = git(project, "for-each-ref", "--format=%(refname:short)", "refs/heads/").splitlines()
        own = ", ".join(name for name in names if not name.startswith("states/"))
        raise UserError(f"say which branch to go to: chronomerge leave BRANCH (there are: {own})")
    present = [path for path in state.entries if (project / path).exists()]
    for path in present:
        if hash_of(project / path).md5 != state.entries[path].md5:
            raise UserError(f"{path} differs from that of {state.tag}; move it elsewhere or delete it, then leave")
    git(project, "checkout", "--quiet", target, "--")
    for path in present:
        _remove(project, project / path)
    return Left(state, target, tuple(present))


def _branch_before(project: Path) -> str | None:
    """The branch that was checked out before; None where git knows of none."""
    try:
        name = git(project, "rev-parse", "--symbolic-full-name", "@{-1}")
    except GitError:
        return None
    return name.removeprefix("refs/heads/") if name.startswith("refs/heads/") else None


def _remove(project: Path, path: Path) -> None:
    """Remove data, and the folders that are empty then."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    for parent in path.parents:
        if parent == project or any(parent.iterdir()):
            return
        parent.rmdir()
