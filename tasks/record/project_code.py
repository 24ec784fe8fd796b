"""The code and the params that a run uses: taken down once, at its start."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import SingleQuotedScalarString

from tasks import layout
from tasks.errors import UserError
from tasks.params import Arrival, Params, load, parse
from tasks.storage.git import git, show, snapshot

CODE = ("chronomerge", "flows", "tasks", "params.yaml", "dvc.yaml")
"""Untracked files here belong to the code of a state all the same (a technique just written, say)."""

NOT_OF_A_STATE = ("step", "arrival", "grid", "hooks")
"""Keys of the user's params that a state's own do not take over; it gets a step and an arrival of its own."""


@dataclass(frozen=True)
class Code:
    """The code that a run uses: the commit it stands on, the tree with uncommitted changes, and whether it has any."""

    commit: str
    tree: str
    dirty: bool


def code_of(project: Path, *also: str) -> Code:
    """Take down the project's code as it is now; ``also`` names files that belong to it beside `CODE`."""
    commit = git(project, "rev-parse", "HEAD")
    tree = snapshot(project, layout.private(project) / "tmp", *CODE, *also)
    return Code(commit, tree, tree != git(project, "rev-parse", "HEAD^{tree}"))


def with_params(project: Path, code: Code, text: str) -> Code:
    """The same code with another ``params.yaml``."""
    index = layout.private(project) / "tmp" / f"index-{os.getpid()}"
    env = {"GIT_INDEX_FILE": str(index)}
    try:
        blob = git(project, "hash-object", "-w", "--stdin", stdin=text)
        git(project, "read-tree", code.tree, env=env)
        git(project, "update-index", "--add", "--cacheinfo", f"100644,{blob},params.yaml", env=env)
        return replace(code, tree=git(project, "write-tree", env=env))
    finally:
        index.unlink(missing_ok=True)


def params_of(project: Path, code: Code) -> Params:
    """The params as they were when the code was taken down; edits meanwhile count for the next run."""
    return parse(show(project, code.tree, "params.yaml"), project / "params.yaml")


def write_params(path: Path, step: int, arrival: Arrival | None) -> None:
    """The user's file with the step and what arrives at it on top, and every default spelled out; comments stay.

    DVC needs each key that ``dvc.yaml`` names, and a state must mean the same when a default has changed.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    content: Any = yaml.load(path.read_text(encoding="utf-8"))
    content.fa.set_block_style()  # a file in JSON has braces around all, and the keys on top would stand outside
    for key in NOT_OF_A_STATE:
        content.pop(key, None)
    params = load(path)
    _spell_out(
        content,
        params.model_dump(mode="json", exclude={**dict.fromkeys(NOT_OF_A_STATE, True), "evaluate": {"in_full"}}),
    )
    if params.evaluate.share is not None:
        content["evaluate"]["in_full"] = list(params.evaluated_in_full(step))
    buffer = io.StringIO()
    plain = YAML(typ="safe")
    plain.default_flow_style = False
    plain.width = 4096
    plain.dump({"step": step}, buffer)
    plain.dump({"arrival": arrival.model_dump(exclude_defaults=True) if arrival else None}, buffer)
    buffer.write("\n")
    yaml.dump(content, buffer)
    path.write_text(buffer.getvalue(), encoding="utf-8")


def _spell_out(given: Any, resolved: dict[str, Any]) -> None:
    for key, value in resolved.items():
        if key not in given:
            given[key] = _quoted(value)
        elif isinstance(value, dict) and isinstance(given[key], dict):
            _spell_out(given[key], value)


def require_same_code(project: Path, running: Path) -> None:
    """A state records the project's code, so that code must be what runs.

    Raises:
        UserError: the program belongs to another checkout.
    """
    if project.resolve() != running.resolve():
        raise UserError(
            f"this chronomerge runs the code in {running}, not that of {project}; "
            f"run `make install` there and use its .venv/bin/chronomerge"
        )


def _quoted(value: Any) -> Any:
    """A value whose texts with a colon have quotes: inside braces, the library would write what it cannot read."""
    if isinstance(value, dict):
        return {key: _quoted(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_quoted(one) for one in value]
    return SingleQuotedScalarString(value) if isinstance(value, str) and ":" in value else value
