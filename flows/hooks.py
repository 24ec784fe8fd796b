"""Commands of the user that run when a state was recorded or a run has failed (``hooks`` in params.yaml).

A cloned repository may contain hooks of its author. So only hooks that were trusted in this clone run; their hashes are
in the folder of git, which a clone does not copy.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tasks import layout, progress
from tasks.errors import UserError
from tasks.params import Hooks, load
from tasks.storage.git import common_dir
from tasks.text import one_line

SECONDS = 300
"""A hook that takes longer is ended."""


def trusted(project: Path, hooks: Hooks) -> bool:
    """Whether the hooks may run in this clone: there are none, or the user has trusted exactly these."""
    if not commands(hooks):
        return True
    try:
        return _digest(hooks) in _trust_file(project).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return False


def trust(project: Path, hooks: Hooks) -> None:
    """Allow these commands to run in this clone from now on."""
    if not trusted(project, hooks):
        path = _trust_file(project)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{_digest(hooks)}\n")


def require_trusted(project: Path, hooks: Hooks) -> None:
    """Check that the hooks are trusted.

    Raises:
        UserError: they are not; the message lists them and says how to trust or remove them.
    """
    if not trusted(project, hooks):
        raise UserError(
            f"params.yaml has hooks that were never run in this clone: {'; '.join(commands(hooks))}. Read them, then "
            "run `chronomerge run --trust` once, or remove hooks: from params.yaml"
        )


def commands(hooks: Hooks) -> list[str]:
    """The commands of the hooks, as shown to the user: ``recorded: notify-send done``."""
    named = {"recorded": hooks.recorded, "failed": hooks.failed}
    return [f"{name}: {one_line(shlex.join(command))}" for name, command in named.items() if command]


def recorded(project: Path, hooks: Hooks, timeline: str, step: int, tag: str) -> None:
    """Run the hook ``recorded``, if there is one."""
    if hooks.recorded:
        _call("recorded", hooks, hooks.recorded, project, TIMELINE=timeline, STEP=str(step), TAG=tag)


def failed(project: Path, error: BaseException) -> None:
    """Run the hook ``failed``, if there is one. If params.yaml itself is wrong, no hook is known."""
    try:
        params = load(project / "params.yaml")
    except UserError:
        return
    if params.hooks.failed:
        why = " ".join(str(error).split()) or type(error).__name__
        _call("failed", params.hooks, params.hooks.failed, project, TIMELINE=params.timeline, ERROR=why)


def _call(outcome: str, hooks: Hooks, command: Sequence[str], project: Path, **facts: str) -> None:
    """Run a command, without a shell, in the project's folder; its failure is reported and stops nothing."""
    if not trusted(project, hooks):
        progress.report(
            f"hook {outcome}:", 1, 1, "not run, because it is not trusted in this clone (chronomerge run --trust)"
        )
        return
    log = layout.private(project) / "logs" / "hooks.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    reported = {"OUTCOME": outcome, "PROJECT": str(project), **facts}
    environment = {**os.environ, **{f"CHRONOMERGE_{name}": value for name, value in reported.items()}}
    try:
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, cwd=project, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,  # so that a timeout ends the whole group
            )  # fmt: skip
            why = f"ended with status {status}" if (status := process.wait(SECONDS)) else ""
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        why = f"took more than {SECONDS} s, and was ended"
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        progress.report(f"hook {outcome}:", 1, 1, f"{command[0]}: {why}; its output is in {log}")


def _digest(hooks: Hooks) -> str:
    return hashlib.sha256(hooks.model_dump_json().encode()).hexdigest()


def _trust_file(project: Path) -> Path:
    return common_dir(project) / "chronomerge" / "trusted-hooks"
