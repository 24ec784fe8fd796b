"""A git worktree per time step: where nodes run and a state is put together, far from the user's own files."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tasks import layout
from tasks.errors import UserError
from tasks.nodes import UNFINISHED, with_codec, with_routes, without_unused
from tasks.params import Arrival, Params, load
from tasks.record import foreign, names
from tasks.record.project_code import Code, params_of, write_params
from tasks.record.state import State
from tasks.storage import dvc_config
from tasks.storage.cache import Cache
from tasks.storage.dvc_config import Remote
from tasks.storage.git import common_dir, git


@dataclass(frozen=True)
class Worktree:
    """A worktree with the code of a run and the params of one step, and a folder for what is on its way in."""

    folder: Path
    params: Params
    scratch: Path


@contextmanager
def for_step(project: Path, code: Code, remote: Remote, step: int, arrival: Arrival | None) -> Iterator[Worktree]:
    """A fresh worktree for one step, removed afterwards; what its nodes made is in the cache by then."""
    folder = _home(project, params_of(project, code).timeline) / f"{step:04d}-{os.getpid()}"
    git(project, "worktree", "add", "--quiet", "--detach", "--no-checkout", "--", str(folder), code.commit)
    try:
        foreign.check_out(project, folder, code.tree, "the project")
        _forget_earlier_state(folder)
        write_params(folder / "params.yaml", step, arrival)
        _fit_pipeline(folder)
        dvc_config.write_workspace(folder, project, remote)
        _link_unfinished(folder, layout.private(project) / "unfinished" / folder.parent.name)
        with tempfile.TemporaryDirectory(prefix="scratch-", dir=folder.parent) as scratch:
            yield Worktree(folder, load(folder / "params.yaml"), Path(scratch))
    finally:
        remove(project, folder)


@contextmanager
def of_state(project: Path, state: State, remote: Remote) -> Iterator[Path]:
    """A folder from which DVC fetches a state's content out of a store, with nothing of the state in it."""
    folder = _home(project, state.timeline) / f"state-{state.step:04d}-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        dvc_config.reset(folder)
        dvc_config.write_local(folder, {"core": {"no_scm": "true"}})
        dvc_config.write_workspace(folder, project, remote)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove(project: Path, folder: Path) -> None:
    """Remove one worktree, whatever a crash has left of it, and git's note of it."""
    shutil.rmtree(folder, ignore_errors=True)
    forget(project, folder)


def forget(project: Path, folder: Path) -> None:
    """Drop git's note of one worktree. (``git worktree prune`` would drop a user's that is only unmounted.)"""
    for note in _notes(project):
        if _where(note) == (folder / ".git").resolve():
            _remove_note(note)


def _notes(project: Path) -> list[Path]:
    """Git's notes of worktrees."""
    return [path for path in (common_dir(project) / "worktrees").glob("*") if path.is_dir()]


def _remove_note(note: Path) -> None:
    """Remove a note of git's; another cell of a grid may be doing so too, and takes files away meanwhile."""
    while note.exists():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(note)


def _where(note: Path) -> Path | None:
    """Which worktree git's note is about, if it says so."""
    try:
        text = (note / "gitdir").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    return Path(text).resolve() if text else None


def _is_of_nothing(project: Path, note: Path) -> bool:
    """Whether git, or we, were killed while a worktree of ours was made or removed: the note is all there is of it."""
    where = _where(note)
    return where is None or (not where.exists() and where.is_relative_to((layout.private(project) / "work").resolve()))


def _drop_stale_locks(repository: Path, timeline: str) -> None:
    """Git locks a ref for milliseconds; a lock on ours that stays is of a git that was killed, and would stop us."""
    moving = (names.branch(timeline), names.pointer(timeline), names.decisions(timeline))
    homes = (names.tags(timeline), names.named_pointers(timeline))
    locks = [*(repository / f"{ref}.lock" for ref in moving)]
    locks += [path for home in homes for path in (repository / home).glob("*.lock")]
    if any(path.exists() for path in locks):
        time.sleep(1)
    for path in locks:
        path.unlink(missing_ok=True)


def folders(project: Path) -> list[Path]:
    """The project and all its other worktrees that exist, without those that steps run in."""
    rows = git(project, "worktree", "list", "--porcelain").splitlines()
    listed = [Path(row.removeprefix("worktree ")) for row in rows if row.startswith("worktree ")]
    ours = layout.private(Path()).name
    others = [tree for tree in listed if tree.exists() and ours not in tree.parts]
    return [project, *(tree for tree in others if tree.resolve() != project.resolve())]


def require_not_checked_out(project: Path, timeline: str) -> None:
    """A branch that somebody has checked out must not move under them.

    Raises:
        UserError: the timeline's branch is checked out; says where.
    """
    where = ""
    for line in git(project, "worktree", "list", "--porcelain").splitlines():
        key, _, value = line.partition(" ")
        if key == "worktree":
            where = value
        elif (key, value) == ("branch", names.branch(timeline)):
            raise UserError(
                f"branch states/{timeline} is checked out in {where}, and a run would move it; "
                "check out your own branch there, or a state's tag"
            )


def clean_up(project: Path, timeline: str) -> list[Path]:
    """Remove what dead runs of a timeline left behind. Only for who holds the timeline's lock."""
    home = _home(project, timeline)
    left = sorted(home.iterdir()) if home.exists() else []
    for folder in left:
        remove(project, folder)
    for note in _notes(project):
        ours = re.fullmatch(r"(state-)?\d{4,}-(\d{1,9})", note.name)  # a longer number is no process id
        if ours and not psutil.pid_exists(int(ours[2])) and _is_of_nothing(project, note):
            _remove_note(note)
    _drop_stale_locks(common_dir(project), timeline)
    for index in (layout.private(project) / "tmp").glob("index-*"):
        if not psutil.pid_exists(int(index.name.split("-")[1].removesuffix(".lock"))):
            index.unlink(missing_ok=True)
    for notes in (layout.private(project) / "dvc").glob("[0-9]*-*"):
        if not psutil.pid_exists(int(notes.name.split("-")[0])):
            shutil.rmtree(notes, ignore_errors=True)
    Cache(dvc_config.cache_dir(project)).drop_unfinished()
    return left


def _home(project: Path, timeline: str) -> Path:
    return layout.private(project) / "work" / timeline


def _link_unfinished(folder: Path, target: Path) -> None:
    """What a node has not finished outlives the worktree, one folder for each timeline."""
    target.mkdir(parents=True, exist_ok=True)
    link = folder / UNFINISHED
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target.resolve(), target_is_directory=True)


def _fit_pipeline(folder: Path) -> None:
    pipeline, params = folder / "dvc.yaml", load(folder / "params.yaml")
    if pipeline.is_file():
        before = pipeline.read_text(encoding="utf-8")
        after = with_routes(with_codec(without_unused(before, params.model_dump()), params), params)
        if after != before:
            pipeline.write_text(after, encoding="utf-8")


def _forget_earlier_state(folder: Path) -> None:
    """Code may have been taken from a checked-out state; its records are not the new step's."""
    for path in layout.RECORDED:
        if path not in ("params.yaml", "dvc.yaml"):
            (folder / path).unlink(missing_ok=True)
    # A state holds what arrived at it as raw files, and needs no pointer; DVC would want what others point to.
    git(folder, "rm", "-r", "--force", "--quiet", "--ignore-unmatch", "--", layout.ARRIVALS)
