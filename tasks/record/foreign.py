"""Where a state would put files: inside the folder it is restored to, and nowhere else.

A state may come from another machine by way of a git remote and a store; what it names is not to be trusted.
"""

from __future__ import annotations

import posixpath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.errors import UserError
from tasks.layout import is_inside
from tasks.record.state import State
from tasks.storage.git import git, show

_LINK = "120000"
"""Git's mode of a symbolic link."""


def check(state: State) -> None:
    """Look at every link and every DVC file of a state's tree, before anything of it is checked out.

    What folders list is looked at when it is read (`tasks.storage.cache.Cache.members`,
    `tasks.storage.dvc_process.checkout`).

    Raises:
        UserError: a link or a path leads outside the folder, or into ``.git``; names it.
    """
    for row in git(state.project, "ls-tree", "-r", "-z", "--full-tree", state.commit).split("\0")[:-1]:
        facts, _, path = row.partition("\t")
        mode, _, blob = facts.split()
        if mode == _LINK:
            target = git(state.project, "cat-file", "blob", blob)
            if not _link_stays_inside(path, target):
                raise UserError(
                    f"{state.tag}: the link {path} leads outside the folder, to {target}; nothing was restored"
                )
        elif path.endswith(".dvc") or posixpath.basename(path) == "dvc.lock":
            for out in _outs(state, path):
                if not is_inside(posixpath.join(posixpath.dirname(path), out)):
                    raise UserError(
                        f"{state.tag}: {path} puts a file outside the folder, at {out}; nothing was restored"
                    )


def _link_stays_inside(path: str, target: str) -> bool:
    """Links may climb only at their start, from the real folder they lie in: further on, ``..`` may follow a link."""
    parts = target.split("/")
    climbs = next((i for i, part in enumerate(parts) if part != ".."), len(parts))
    if target.startswith("/") or ".." in parts[climbs:]:
        return False
    return climbs <= path.count("/") and is_inside(posixpath.join(posixpath.dirname(path), target, "x"))


def _outs(state: State, path: str) -> list[str]:
    """The paths of all outputs that a ``.dvc`` file or a ``dvc.lock`` names, relative to its folder."""
    try:
        content: Any = YAML(typ="safe").load(show(state.project, state.commit, path))
        stages = content.get("stages", {"": content}).values()
        return [posixpath.join(stage.get("wdir", ""), out["path"]) for stage in stages for out in stage.get("outs", ())]
    except (YAMLError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{state.tag}: {path} is no DVC file: {' '.join(str(error).split())}") from None
