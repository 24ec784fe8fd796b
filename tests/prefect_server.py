"""The Prefect server of a test session: ``python -m tests.prefect_server HOME NOTE``, started by the fork server.

The server's address is written to NOTE once it answers. It ends with the fork server, that is with the last worker.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from flows.prefect import server


def main(home: Path, note: Path) -> None:
    parent = os.getppid()
    with server.serving(home, own=True) as started:
        started.wait()
        names = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_HOME")
        new = note.with_suffix(".new")
        new.write_text(json.dumps({name: os.environ[name] for name in names}))
        new.rename(note)
        while os.getppid() == parent:
            time.sleep(0.2)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
