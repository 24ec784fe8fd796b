"""A process that must not outlive the one that started it, however that ends."""

from __future__ import annotations

import os
import threading
import time


def end_with(parent: int, every: float, status: int = 1) -> None:
    """End this process once ``parent`` is gone, looked for each ``every`` seconds.

    A killed parent cannot stop its children, and an orphan is handed to another process: that is watched for.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os._exit(status)

    threading.Thread(target=watch, daemon=True).start()
