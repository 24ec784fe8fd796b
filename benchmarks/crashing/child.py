"""The program in a process of its own, with a fault at one boundary: forked from a fork server, or as DVC's child."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from crashing import boundaries

DVC_CHILD = [sys.executable, str(Path(__file__).with_name("dvc_child.py"))]
REQUEST = "CHRONOMERGE_CRASH"
"""Environment variable that hands the request on to DVC's child."""
MARK = "CHRONOMERGE_CRASH_LANE"
"""Environment variable by which the harness knows its processes."""


class InjectedError(RuntimeError):
    """The fault "exception": a bug that nobody has foreseen."""


@dataclass(frozen=True)
class Call:
    """One run of the command line."""

    project: str
    arguments: tuple[str, ...]
    notes: str
    """Folder in which process and harness leave notes for each other, and the output."""
    environment: Mapping[str, str]
    boundary: str | None = None
    fault: str | None = None


def run(request: Call) -> None:
    """Be the program: the command line with the project's own code. For a freshly forked process."""
    assert "crashing.preload" in sys.modules, "the fork server could not import its modules"
    os.setsid()
    os.environ.pop("PYTHONPATH")  # the fork server's
    os.chdir(request.project)
    for number, name, mode in (
        (0, os.devnull, "r"),
        (1, f"{request.notes}/out", "a"),
        (2, f"{request.notes}/err", "a"),
    ):
        with Path(name).open(mode) as file:
            os.dup2(file.fileno(), number)
    os.environ.update(request.environment)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("flows", "tasks", "tests")]:
        del sys.modules[name]
    sys.path.insert(0, request.project)
    sys.argv = ["chronomerge", *request.arguments]

    import prefect.context

    prefect.context.refresh_global_settings_context()
    from flows.cli import app

    _note_waiting(Path(request.notes))
    if request.boundary:
        where = boundaries.BY_NAME[request.boundary]
        if where.where == "program":
            boundaries.install(where, lambda: strike(request, os.getpid()))
        else:
            os.environ[REQUEST] = json.dumps(asdict(request))
            _replace_dvc_child()
    app.main()


def strike(request: Call, pid: int) -> None:
    """Tell the harness that the boundary is reached, wait until it has prepared what it wants, and do the fault."""
    notes = Path(request.notes)
    (notes / "reached").touch()
    while not (notes / "go").exists():
        time.sleep(0.01)
    if request.fault == "SIGKILL":
        os.kill(pid, signal.SIGKILL)
    elif request.fault == "SIGTERM":
        os.kill(pid, signal.SIGTERM)
    elif request.fault == "SIGKILL of DVC":
        os.kill(os.getpid(), signal.SIGKILL)
    elif request.fault == "exception":
        raise InjectedError("injected")
    if request.fault in ("SIGKILL", "SIGTERM") and pid == os.getpid():
        time.sleep(0.1)  # a handler runs here


def _note_waiting(notes: Path) -> None:
    """Have the lock's waiting seen from outside."""
    from tasks.storage import locks

    def sleep(seconds: float) -> None:
        (notes / "waiting").touch()
        time.sleep(seconds)

    assert locks.time is time
    locks.time = SimpleNamespace(sleep=sleep)  # type: ignore[assignment]


def _replace_dvc_child() -> None:
    """Have the program start our DVC process instead of its own: the same one, with the boundary in it."""
    from tasks import processes

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: list[str], **options: Any):
            assert command[1:] == ["-P", "-m", "tasks.storage.dvc_process"], command
            super().__init__(DVC_CHILD, **{**options, "env": {**options["env"], REQUEST: os.environ[REQUEST]}})

    assert processes.subprocess is subprocess
    kinds = SimpleNamespace(Popen=Popen, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
    processes.subprocess = kinds  # type: ignore[assignment]
