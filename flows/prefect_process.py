"""The process of our own Prefect server; it ends with the process that started it, however that ends."""

from __future__ import annotations

import os
import sys
import threading
import time


def main() -> None:
    parent, port = int(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

    import uvicorn

    uvicorn.run(
        "prefect.server.api.server:create_app", factory=True, host="127.0.0.1", port=port, log_level="error",
        lifespan="on",
    )  # fmt: skip


def _end_with(parent: int) -> None:
    """A killed parent cannot stop us, and an orphan is handed to another process: watch for that."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


if __name__ == "__main__":
    main()
