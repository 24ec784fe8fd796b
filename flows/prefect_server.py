"""The Prefect server that flows report to: the user's own (PREFECT_API_URL), or one of ours for the time of a run.

Settings go through the environment, so this must be used before anything imports `prefect`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import UserError
from tasks.record import layout

START_SECONDS = 180
"""A first start creates the database: 8 s on an idle machine, 40 s on a busy one."""


@contextmanager
def serving(project: Path) -> Iterator[None]:
    """Have a Prefect server starting when the block begins; `wait` tells when it answers."""
    _configure(project)
    if "PREFECT_API_URL" in os.environ:
        yield
        return
    server = _start(project)
    try:
        yield
    finally:
        del os.environ["PREFECT_API_URL"]
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait(project: Path) -> None:
    """Return when the server answers.

    Raises:
        UserError: it does not, within three minutes; names its address and, for our own, its log.
    """
    url = os.environ["PREFECT_API_URL"]
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise UserError(f"the Prefect server at {url} does not answer (log of our own: {_log(project)})")


def flush_logs() -> None:
    """Send what Prefect has logged in this process, while there is a server to take it."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()


def _configure(project: Path) -> None:
    home = layout.private(project) / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_LOCAL_STORAGE_PATH", str(home / "results"))
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # a run has a display of its own
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if "PREFECT_API_URL" not in os.environ:
        os.environ["PREFECT_HOME"] = str(home)
    _drop_torn_results(Path(os.environ["PREFECT_LOCAL_STORAGE_PATH"]))


def _drop_torn_results(folder: Path) -> None:
    """Prefect writes results in place: a kill can leave half of one, which would fail every later run."""
    for path in folder.glob("*") if folder.exists() else ():
        try:
            json.loads(path.read_bytes())
        except ValueError:
            path.unlink()


def _start(project: Path) -> subprocess.Popen[bytes]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    }
    command = [
        sys.executable, "-m", "flows.prefect_process", str(os.getpid()), str(port),
    ]  # fmt: skip
    log = _log(project)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment,
            start_new_session=True,  # Ctrl-C is for the run, which still has to tell the server
        )  # fmt: skip
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    return server


def _log(project: Path) -> Path:
    return layout.private(project) / "logs" / "prefect.log"
