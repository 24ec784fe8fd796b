"""Processes and those that they start: none outlives the other for long, however it ends."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from typing import Any


def end_with(parent: int, every: float, status: int = 1) -> None:
    """End this process once ``parent`` is gone, looked for each ``every`` seconds.

    A killed parent cannot stop its children, and an orphan is handed to another process: that is watched for.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os._exit(status)

    threading.Thread(target=watch, daemon=True).start()


def see_end(process: subprocess.Popen[Any], within: float) -> None:
    """Return when a process that was told to end has ended; after ``within`` seconds it is killed."""
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
