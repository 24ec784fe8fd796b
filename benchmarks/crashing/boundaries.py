"""The boundaries inside a time step and inside recording: a name each, and the product's function that marks it.

A boundary wraps one function of the product from outside; the product knows nothing of it. A function that is gone
is an error at once, and one that is never called is an error of the case.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from tasks import nodes

Strike = Callable[[], None]
"""What happens at a boundary; may not return."""


def always(*_: Any, **__: Any) -> bool:
    return True


@dataclass(frozen=True)
class Boundary:
    """Where a fault strikes: before or after the first call of a function that ``when`` accepts."""

    name: str
    target: str
    """``module:name`` or ``module:Class.name``."""
    moment: Literal["before", "after"]
    when: Callable[..., bool] = always
    """Called with the arguments of the call."""
    where: Literal["program", "dvc"] = "program"
    """The process it happens in: ours, or its child that runs DVC."""
    project: Literal["begun", "empty", "optional", "shared"] = "begun"
    """Step 0 is recorded; nothing is; step 0 is recorded and has every optional node, or states go to a git remote."""
    held: bool = True
    """Whether the timeline's lock is held there."""


def install(boundary: Boundary, strike: Strike) -> None:
    """Wrap the boundary's function, wherever the product's modules refer to it."""
    module_name, _, path = boundary.target.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original = getattr(owner, name)
    struck = False

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal struck
        hit = not struck and boundary.when(*args, **kwargs)
        struck = struck or hit
        if hit and boundary.moment == "before":
            strike()
        value = original(*args, **kwargs)
        if hit and boundary.moment == "after":
            strike()
        return value

    setattr(owner, name, wrapper)
    for module in list(sys.modules.values()):
        if module.__name__.partition(".")[0] in ("flows", "tasks") and getattr(module, name, None) is original:
            setattr(module, name, wrapper)


def _git(*first: str, index: bool | None = None) -> Callable[..., bool]:
    """Calls of git by their first arguments, and by whether they use an index of their own."""

    def when(_: Path, *args: str, env: Any = None, **__: Any) -> bool:
        own = "GIT_INDEX_FILE" in (env or {})
        return args[: len(first)] == first and index in (None, own)

    return when


def _node(name: str) -> Callable[..., bool]:
    return lambda node, *_, **__: node.name == name


def _where_it_runs(name: str) -> Literal["begun", "empty", "optional"]:
    """The project in whose next step a node runs."""
    if name == "prepare-evaluation":  # later the test sets are those of before
        return "empty"
    return "optional" if nodes.NODES[name].only_with else "begun"


def _storing(path: str, *, folder: bool = False) -> Callable[..., bool]:
    """A file gets its name in the cache while a node's output is put there: one of its files, or its list of files."""

    def when(_: Path, target: Path) -> bool:
        frame: FrameType | None = sys._getframe(2)
        while frame and frame.f_code.co_name != "put":
            frame = frame.f_back
        if frame is None:
            return False
        return str(frame.f_locals["path"]).endswith(path) and target.name.endswith(".dir") == folder

    return when


def _ending(_: Path, server: Any) -> bool:
    return bool(server.ending)


def _nth(number: int) -> Callable[..., bool]:
    calls = itertools.count(1)
    return lambda *_, **__: next(calls) == number


GIT = "tasks.storage.git:git"
REPO = "tasks.storage.dvc_process:Repo"
TRANSFER = "tasks.storage.transfer"
RENAME = "pathlib:Path.replace"
RUN = "tasks.step.execute:run"

BOUNDARIES = (
    # start-up
    Boundary("lock taken", "tasks.record.worktrees:require_not_checked_out", "before"),
    Boundary("cleaned up", "tasks.record.worktrees:clean_up", "after"),
    Boundary("code half taken down", GIT, "before", _git("write-tree", index=True)),
    Boundary("first store: before its credentials", "tasks.storage.seaweedfs:credentials", "before", project="empty"),
    Boundary("store: before its start", "tasks.storage.embedded:_start", "before"),
    Boundary("store: process started, not noted", "tasks.storage.seaweedfs:_spawn", "after"),
    Boundary("store: noted", "tasks.storage.embedded:_start", "after"),
    Boundary("first store: no bucket yet", "tasks.storage.store:check", "before", project="empty"),
    Boundary("store: checked", "tasks.storage.store:check", "after"),
    Boundary("models loaded", "tasks.model.models:preload", "after"),
    # inputs
    Boundary("step begins", "tasks.step.workspace:opened", "before"),
    Boundary("DVC started", "tasks.storage.dvc:Dvc.__init__", "after"),
    Boundary("before worktree add", GIT, "before", _git("worktree", "add")),
    Boundary("after worktree add", GIT, "after", _git("worktree", "add")),
    Boundary("worktree filled", GIT, "after", _git("read-tree", "--reset")),
    Boundary("params written", "tasks.record.project_code:write_params", "after"),
    Boundary("DVC config half written", RENAME, "before", lambda _, target: target.name == "config.local"),
    Boundary("raw arrival placed", "tasks.step.inputs:place_arrival", "after"),
    Boundary("history composed", "tasks.record.history:after", "after"),
    Boundary("first history composed", "tasks.record.history:first", "after", project="empty"),
    Boundary("inputs placed", "tasks.step.inputs:place_evaluation", "after"),
    # nodes
    *(
        Boundary(f"{moment} node {name}", RUN, moment, _node(name), project=_where_it_runs(name))
        for name in nodes.NODES
        for moment in ("before", "after")
    ),
    Boundary("expert half stored", "tasks.storage.atomic:link", "before", _storing("expert.safetensors")),
    Boundary("running model half stored", RENAME, "before", _storing("running", folder=True)),
    Boundary("reference half stored", RENAME, "before", lambda _, target: target.parent.name == "references"),
    # recording
    Boundary("recording begins", "tasks.record.recording:record", "before"),
    Boundary("judged by the gate", "tasks.gate:judge", "after"),
    Boundary("manifest written", "tasks.record.manifest:text", "after"),
    Boundary("before dvc add", f"{REPO}.add", "before", where="dvc"),
    Boundary("after dvc add", f"{REPO}.add", "after", where="dvc"),
    Boundary("after dvc commit", f"{REPO}.commit", "after", where="dvc"),
    Boundary("before push", f"{TRANSFER}:push", "before", where="dvc"),
    Boundary("middle of push", "s3fs:S3FileSystem._put_file", "before", _nth(3), where="dvc"),
    Boundary("after push, before check", f"{TRANSFER}:_same", "before", where="dvc"),
    Boundary("after check", f"{TRANSFER}:push", "after", where="dvc"),
    Boundary("pushed and checked", "tasks.storage.dvc:Dvc.__call__", "after"),
    Boundary("before write-tree", GIT, "before", _git("write-tree", index=False)),
    Boundary("before commit-tree", GIT, "before", _git("commit-tree")),
    Boundary("after commit-tree", GIT, "after", _git("commit-tree")),
    Boundary("before git push", GIT, "before", _git("push"), project="shared"),
    Boundary("after git push", GIT, "after", _git("push"), project="shared"),
    Boundary("before update-ref", GIT, "before", _git("update-ref", "--stdin")),
    Boundary("after update-ref", GIT, "after", _git("update-ref", "--stdin")),
    # the end
    Boundary("before worktree removal", "tasks.record.worktrees:remove", "before"),
    Boundary("worktree removed, git's note is left", "tasks.record.worktrees:forget", "before"),
    Boundary("after worktree removal", "tasks.record.worktrees:remove", "after"),
    Boundary("DVC ended", "tasks.storage.dvc:Dvc.close", "after"),
    Boundary("before store shutdown", "tasks.storage.embedded:_stop", "before"),
    Boundary("store noted as ending, not told", "tasks.storage.seaweedfs:write_note", "after", _ending),
    Boundary("after store shutdown", "tasks.storage.embedded:_stop", "after"),
    Boundary("all done", "flows.run:run", "after", held=False),
)  # fmt: skip

BY_NAME = {boundary.name: boundary for boundary in BOUNDARIES}
