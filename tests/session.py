"""What the workers of a test session share: each thing is made by the first of them that asks for it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from tests import forks

START_SECONDS = 240


def once(folder: Path, name: str, make: Callable[[], Any]) -> Any:
    """What ``make`` returns, as JSON keeps it; it is called once in a session, whose workers share the folder."""
    note = folder / f"{name}.json"
    with FileLock(folder / f"{name}.lock"):
        if not note.exists():
            note.write_text(json.dumps(make()))
    return json.loads(note.read_text())


def first(folder: Path, name: str) -> bool:
    """Whether this is the first time in a session that somebody asks for this name."""
    try:
        os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def start_prefect_server(home: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Start a Prefect server that lasts as long as the session, and wait until it answers; returns its address.

    A child of the fork server starts it, since that ends with the last worker, and not with the first.
    """
    note, log = home / "address.json", home / "server.log"
    with Path(os.devnull).open("rb") as nothing, log.open("wb") as file:
        process = forks.server().start(
            Path(__file__).parents[1], environment, [nothing.fileno(), file.fileno(), file.fileno()],
            "tests.prefect_server", str(home), str(note),
        )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while not note.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    address: dict[str, str] = json.loads(note.read_text())
    return address
