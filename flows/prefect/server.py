"""The Prefect server that flows report to: the user's own (PREFECT_API_URL), or one of ours while it is needed.

Settings go through the environment, so this must be used before anything imports `prefect`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tasks import environment, layout, processes
from tasks.errors import UserError

START_SECONDS = 180
"""A first start creates the database: 8 s on an idle machine, 40 s on a busy one."""

_DATABASE = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
"""Where the user names a database that our server is to use, a PostgreSQL say."""


@dataclass(frozen=True)
class Server:
    """A Prefect server: the address of its API and, where it is our own, its process and log."""

    url: str
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None

    @property
    def private(self) -> bool:
        """Whether its database is of our own making, so that no other server has part in it."""
        return self.process is not None and not any(os.environ.get(name) for name in _DATABASE)

    def wait(self) -> None:
        """Return when the server answers, in whatever way: signing in is the client's business.

        Raises:
            UserError: it does not within three minutes, or it has ended; names its address or its log.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process and self.process.poll() is not None:
                raise UserError(f"the Prefect server did not start; its log is {self.log}")
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
        raise UserError(f"the Prefect server at {self.url} does not answer; is PREFECT_API_URL right?")

    def stop(self) -> None:
        """End our own; politely first."""
        assert self.process
        self.process.terminate()
        processes.see_end(self.process, within=5)


@contextmanager
def serving(project: Path) -> Iterator[Server]:
    """A Prefect server that is starting when the block begins; `Server.wait` tells when it answers."""
    private = _settled(project)
    with _sound_results(private):
        if url := os.environ.get("PREFECT_API_URL"):
            yield Server(url)
            return
        with (private / "prefect.lock").open("a") as lock:
            # One server to a database: a second run in this project has a home of its own.
            home = private / ("prefect" if _alone(lock) else f"prefect-{os.getpid()}")
            server = _start(home, private / "logs" / f"{home.name}.log", _free_port(), _QUIET)
            try:
                yield server
            finally:
                os.environ.pop("PREFECT_API_URL", None)
                server.stop()


@contextmanager
def lasting(project: Path, say: Callable[[str], None]) -> Iterator[Server]:
    """As `serving`, for a process that starts runs rather than being one: with schedules, triggers and Prefect's pages.

    Waits for a run that uses our database, and says so.
    """
    private = _settled(project)
    if url := os.environ.get("PREFECT_API_URL"):
        yield Server(url)
        return
    with (private / "prefect.lock").open("a") as lock:
        if not _alone(lock):
            say("waiting for the run that uses the project's Prefect database")
            fcntl.flock(lock, fcntl.LOCK_EX)
        server = _start(private / "prefect", private / "logs" / "prefect.log", _free_port(), {})
        try:
            yield server
        finally:
            os.environ.pop("PREFECT_API_URL", None)
            server.stop()


def _settled(project: Path) -> Path:
    """The project's private folder, once what Prefect reads from the environment is set."""
    environment.bypass_proxies_on_loopback()
    private = layout.make_private(project)
    os.environ["PREFECT_LOCAL_STORAGE_PATH"] = str(private / "results")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # a run has a display of its own
    os.environ.setdefault("DO_NOT_TRACK", "1")
    return private


def tidy(project: Path) -> None:
    """Remove the results that a run has half written, unless a run is under way: for who starts no server."""
    private = layout.make_private(project)
    with _sound_results(private):
        pass


@contextmanager
def _sound_results(private: Path) -> Iterator[None]:
    """The folder of results, without any half-written one when nobody else uses it."""
    with (private / "results.lock").open("a") as lock:
        if _alone(lock):
            _drop_torn_results(private / "results")
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _alone(lock: TextIO) -> bool:
    """Whether nobody else holds a lock; then it is held."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def flush_logs() -> None:
    """Send what Prefect has logged in this process, while there is a server to take it."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()


def _drop_torn_results(folder: Path) -> None:
    """Prefect writes results in place: a kill or a failure can leave half of one, which would fail every later run."""
    for path in folder.glob("*"):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            path.unlink()


_QUIET = {
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}
"""What a server does not do that is there for one run."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(home: Path, log: Path, port: int, settings: Mapping[str, str]) -> Server:
    os.environ["PREFECT_HOME"] = str(home)
    home.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = environment.for_child(PREFECT_SERVER_ANALYTICS_ENABLED="false", **settings)
    url = os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    return Server(url, _spawn(port, log, variables), log)


def _spawn(port: int, log: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flows.prefect.server_process", str(os.getpid()), str(port)]
    with log.open("ab") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=variables,
            start_new_session=True,  # Ctrl-C is for the run, which still has to tell the server
        )  # fmt: skip
