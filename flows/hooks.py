"""The user's own commands, called when a state was recorded and when a run has failed (``hooks`` in params.yaml)."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tasks import layout, progress
from tasks.errors import UserError
from tasks.params import Hooks, load

SECONDS = 300
"""A hook that takes longer is ended."""


def recorded(project: Path, hooks: Hooks, timeline: str, step: int, tag: str) -> None:
    """A state was recorded."""
    if hooks.recorded:
        _call("recorded", hooks.recorded, project, TIMELINE=timeline, STEP=str(step), TAG=tag)


def failed(project: Path, error: BaseException) -> None:
    """A run has failed, for good as far as it can tell. Where params.yaml itself is wrong, no hook is known."""
    try:
        params = load(project / "params.yaml")
    except UserError:
        return
    if params.hooks.failed:
        why = " ".join(str(error).split()) or type(error).__name__
        _call("failed", params.hooks.failed, project, TIMELINE=params.timeline, ERROR=why)


def _call(outcome: str, command: Sequence[str], project: Path, **facts: str) -> None:
    """Run a command, without a shell, in the project's folder; whatever becomes of it is reported and stops nothing."""
    log = layout.private(project) / "logs" / "hooks.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    told = {"OUTCOME": outcome, "PROJECT": str(project), **facts}
    environment = {**os.environ, **{f"CHRONOMERGE_{name}": value for name, value in told.items()}}
    try:
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, cwd=project, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,  # ended as a whole, where it takes too long
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
