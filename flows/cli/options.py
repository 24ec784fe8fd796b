"""The options that several verbs have, and the project and timeline that a command is about."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.terminal import errors

NAME = typer.Argument(metavar="T", help="A time step (3; 0 is the base), 3.2 for another line, or a tag.")
Name = Annotated[str, NAME]
Timeline = Annotated[str | None, typer.Option(help="Another timeline than the one in params.yaml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="tls://HOST:PORT", help="Run the nodes on the workers of a Dask scheduler (docs/guides/scale.md)."
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait while another process writes to the timeline.")]


class OnMismatch(StrEnum):
    """What to do with a tensor of another shape than the base's."""

    error = "error"
    base = "base"


Trust = Annotated[
    bool, typer.Option("--trust", help="Run the commands under hooks in params.yaml, in this clone, from now on.")
]


class Library(StrEnum):
    """Whose folder is written."""

    open_clip = "open_clip"
    transformers = "transformers"


ModelFormat = Annotated[Library, typer.Option("--format", help="The library that is to load it.")]
ModelDtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16 [the state's].")]


def project() -> Path:
    """The project around the current folder; its ``.chronomerge`` is its owner's alone from here on.

    Raises:
        UserError: there is none.
    """
    from tasks import layout
    from tasks.storage.git import top_level

    folder = top_level(Path.cwd())
    if os.access(folder, os.W_OK):
        layout.make_private(folder)
    return folder


def timeline(project: Path, named: str | None = None) -> str:
    """The timeline that was named, else that of params.yaml.

    Raises:
        UserError: params.yaml is wrong.
    """
    if named:
        return named
    from tasks.params import load

    return load(project / "params.yaml").timeline


def settle_trust(project: Path, trust: bool) -> None:
    """Before work starts: have the hooks of params.yaml trusted, by ``--trust`` or by an answer on the terminal.

    Raises:
        UserError: params.yaml is wrong, or nobody trusts its hooks; names them.
    """
    from flows import hooks
    from tasks.params import load

    asked = load(project / "params.yaml").hooks
    if hooks.trusted(project, asked):
        return
    if not trust and sys.stdin.isatty() and sys.stderr.isatty():
        errors.print("params.yaml has hooks that were never run in this clone:")
        for command in hooks.commands(asked):
            errors.print(f"  {command}")
        trust = typer.confirm("Run them from now on?", err=True)
    if trust:
        hooks.trust(project, asked)
    hooks.require_trusted(project, asked)
