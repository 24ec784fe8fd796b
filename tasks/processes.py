"""Child processes that run our own code: how they are started, and that none outlives its parent for long.

Parent and child talk in lines of JSON: requests on the child's stdin, where it takes any, and answers on its stdout.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any

from tasks import environment

PYTHON = (sys.executable, "-P")
"""How a Python is started for our code: it imports nothing of its working folder, which may be a stranger's."""


def start(
    module: str,
    *arguments: str,
    folder: Path,
    log: IO[Any] | None,
    requests: bool = False,
    answers: int = subprocess.PIPE,
    variables: Mapping[str, str] | None = None,
    own_session: bool = False,
) -> subprocess.Popen[str]:
    """Start ``python -P -m module`` in a folder; its stdout is a pipe, and with ``requests`` its stdin too.

    ``answers`` is the descriptor of a pipe that several children share, in place of one of its own. ``log`` takes its
    stderr; None passes it on to this process's own. ``variables`` are its environment, by default
    `tasks.environment.for_child`. A child with ``own_session`` gets no Ctrl-C from the terminal: its parent ends it.
    """
    return subprocess.Popen(
        [*PYTHON, "-m", module, *arguments],
        cwd=folder, env=dict(environment.for_child() if variables is None else variables), text=True,
        stdin=subprocess.PIPE if requests else subprocess.DEVNULL, stdout=answers, stderr=log,
        start_new_session=own_session, encoding="utf-8"
    )  # fmt: skip


def age() -> float:
    """How many seconds ago this process began; its imports are part of the time that a command takes."""
    import psutil  # here, since few processes ask

    return time.time() - psutil.Process().create_time()


def end_with(parent: int, every: float, status: int = 1) -> None:
    """End this process once ``parent`` is gone, looked for each ``every`` seconds.

    A killed parent cannot stop its children, and an orphan is handed to another process: that is watched for.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os._exit(status)

    threading.Thread(target=watch, daemon=True).start()


def clean_up_on_sigterm() -> None:
    """Let SIGTERM end this process as an error would: open blocks are left, and the servers they started end.

    A supervisor, `make` or a terminal may send it more than once; the clean-up goes on.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def see_end(process: subprocess.Popen[Any], within: float) -> None:
    """Return when a process that was told to end has ended; after ``within`` seconds it is killed."""
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
