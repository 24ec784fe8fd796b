"""Check a tree out that may be a stranger's: files go inside its folder and nowhere else, and nothing of it runs.

A state may come from another machine by way of a git remote and a store; what it names is not to be trusted.
"""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from tasks import layout, yaml
from tasks.errors import UserError
from tasks.layout import is_inside
from tasks.storage import dvc_config, git


def check_out(project: Path, folder: Path, tree: str, name: str) -> None:
    """Fill a worktree made with ``--no-checkout`` with a tree, checked first; DVC's configuration there is our own.

    No hook and no filter runs. ``name`` is what messages call the tree.

    Raises:
        UserError: as `check`.
    """
    check(project, tree, name)
    git.check_out(folder, tree)
    dvc_config.reset(folder)
    if git.git(folder, "ls-files", "--", ".dvc/config"):  # ours, and no change to speak of
        git.git(folder, "update-index", "--skip-worktree", "--", ".dvc/config")


def check(project: Path, tree: str, name: str) -> None:
    """Look at every link and every DVC file of a tree or commit, before anything of it is checked out.

    What folders list is looked at when it is read (`tasks.storage.cache.Cache.members`,
    `tasks.storage.dvc_process.checkout`).

    Raises:
        UserError: a link or a path leads outside the folder, or into ``.git``; DVC's or our own folder is a link, or
            holds one or somebody's secrets. Names it.
    """
    for row in git.git(project, "ls-tree", "-r", "-z", "--full-tree", "--end-of-options", tree).split("\0")[:-1]:
        facts, _, path = row.partition("\t")
        mode, _, blob = facts.split()
        if path.lower().split("/")[0] in layout.OURS and layout.is_of_one_machine(path, link=mode == git.LINK):
            raise UserError(f"{name}: {path} cannot be part of a project (a link, or settings of one machine)")
        if mode == git.LINK:
            target = git.git(project, "cat-file", "blob", blob)
            if not _link_stays_inside(path, target):
                raise UserError(
                    f"{name}: the link {path} leads outside the folder, to {target}; nothing was checked out"
                )
        elif path.endswith(".dvc") or posixpath.basename(path) == "dvc.lock":
            for out in _outs(project, tree, name, path):
                if not is_inside(posixpath.join(posixpath.dirname(path), out)):
                    raise UserError(f"{name}: {path} puts a file outside the folder, at {out}; nothing was checked out")


def _link_stays_inside(path: str, target: str) -> bool:
    """Links may climb only at their start, from the real folder they lie in: further on, ``..`` may follow a link."""
    parts = target.split("/")
    climbs = next((i for i, part in enumerate(parts) if part != ".."), len(parts))
    if target.startswith("/") or ".." in parts[climbs:]:
        return False
    return climbs <= path.count("/") and is_inside(posixpath.join(posixpath.dirname(path), target, "x"))


def _outs(project: Path, tree: str, name: str, path: str) -> list[str]:
    """The paths of all outputs that a ``.dvc`` file or a ``dvc.lock`` names, relative to its folder."""
    try:
        content: Any = yaml.load(git.show(project, tree, path))
        stages = content.get("stages", {"": content}).values()
        return [posixpath.join(stage.get("wdir", ""), out["path"]) for stage in stages for out in stage.get("outs", ())]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{name}: {path} is no DVC file: {' '.join(str(error).split())}") from None
