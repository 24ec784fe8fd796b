"""The Prefect server that flows report to: the user's own (PREFECT_API_URL), or one of ours while it is needed.

Settings go through the environment, so this must be used before anything imports `prefect`.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.prefect.api import Api, RefusedError, UnansweredError
from tasks import environment, layout, processes
from tasks.errors import UserError
from tasks.storage import locks

START_SECONDS = 180
"""A first start creates the database: 8 s on an idle machine, 40 s on a busy one."""

_DATABASE = ("PREFECT_SERVER_DATABASE_", "PREFECT_API_DATABASE_")
"""How settings begin that name a database which our server is to use, a PostgreSQL say."""


@dataclass(frozen=True)
class Server:
    """A Prefect server: the address of its API and, where it is our own, its process and log."""

    url: str
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None
    private: bool = False
    """Whether its database is of our own making, so that no other server has part in it."""

    def wait(self) -> None:
        """Return when the server answers, and accepts our sign-in.

        Raises:
            UserError: it does not within three minutes, it refuses, or it has ended; names its address or its log.
        """
        deadline, api = time.monotonic() + START_SECONDS, Api(self.url, patience=5)
        while time.monotonic() < deadline:
            if self.process and self.process.poll() is not None:
                raise UserError(f"the Prefect server did not start{self._database()}; its log is {self.log}")
            try:
                api.get("health")
                api.get("admin/version")
                return
            except RefusedError as error:
                raise UserError(str(error)) from None
            except UnansweredError:
                pass
            time.sleep(0.1)
        raise UserError(f"the Prefect server at {self.url} does not answer; is PREFECT_API_URL right?")

    def _database(self) -> str:
        return "" if self.private else f" on the database of {_DATABASE[0]}…, which has to be up"

    def stop(self) -> None:
        """End our own; politely first."""
        assert self.process
        self.process.terminate()
        processes.see_end(self.process, within=5)


@contextmanager
def serving(project: Path, *, own: bool = False) -> Iterator[Server]:
    """A Prefect server that is starting when the block begins; `Server.wait` tells when it answers.

    That of PREFECT_API_URL with the user's settings, unless ``own`` asks for ours.
    """
    private = _private(project)
    if (url := os.environ.get("PREFECT_API_URL")) and not own:
        os.environ.update(_results(private))
        os.environ.setdefault(*_SILENT)
        yield Server(url)
        return
    with (private / "prefect.lock").open("a", encoding="utf-8") as lock:
        # One server to a database: a second run in this project has a home of its own.
        home = private / ("prefect" if locks.acquire(lock, wait=False) else f"prefect-{os.getpid()}")
        with _started(private, home, _QUIET) as server:
            yield server


@contextmanager
def lasting(project: Path, say: Callable[[str], None]) -> Iterator[Server]:
    """As `serving`, for a process that starts runs rather than being one: with schedules, triggers and Prefect's pages.

    Waits for a run that uses our database, and says so.
    """
    private = _private(project)
    if url := os.environ.get("PREFECT_API_URL"):
        os.environ.update(_results(private))
        os.environ.setdefault(*_SILENT)
        yield Server(url)
        return
    with (private / "prefect.lock").open("a", encoding="utf-8") as lock:
        if not locks.acquire(lock, wait=False):
            say("waiting for the run that uses the project's Prefect database")
            locks.acquire(lock)
        with _started(private, private / "prefect", {}) as server:
            path = sign_in_file(project)
            path.unlink(missing_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(os.environ["PREFECT_API_AUTH_STRING"])
            try:
                yield server
            finally:
                path.unlink(missing_ok=True)


def sign_in_file(project: Path) -> Path:
    """What holds ``user:password`` of the server that `lasting` has started, for its owner alone."""
    return layout.private(project) / "prefect" / "sign-in"


def sign_in(project: Path) -> str | None:
    """See `sign_in_file`; None where there is none."""
    try:
        return sign_in_file(project).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _private(project: Path) -> Path:
    environment.bypass_proxies_on_loopback()
    return layout.make_private(project)


def flush_logs() -> None:
    """Send what Prefect has logged in this process, while there is a server to take it."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()


_SILENT = ("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
"""A run has a display of its own."""

_QUIET = {
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}
"""What a server does not do that is there for one run."""


def _results(private: Path) -> dict[str, str]:
    return {"PREFECT_LOCAL_STORAGE_PATH": str(private / "results"), "DO_NOT_TRACK": "1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _started(private: Path, home: Path, settings: Mapping[str, str]) -> Iterator[Server]:
    """Our own server. While the block lasts this process and its children have our settings of Prefect, and no others.

    Nobody gets in without the sign-in, which only the environment of our processes has; nor does a web page of
    elsewhere, whose browser is on this machine.
    """
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)  # the database, and the sign-in
    log = private / "logs" / f"{home.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    absent = environment.absent_certificates()
    users = {name: value for name, value in os.environ.items() if name.startswith("PREFECT_") or name in absent}
    database = {name: value for name, value in users.items() if name.startswith(_DATABASE)}
    port, secret = _free_port(), f"chronomerge:{secrets.token_urlsafe(32)}"
    page = f"http://127.0.0.1:{port}"
    client = {
        "PREFECT_HOME": str(home), "PREFECT_API_URL": f"{page}/api", "PREFECT_API_AUTH_STRING": secret,
        **_results(private), **dict([_SILENT]),
    }  # fmt: skip
    server = {
        "PREFECT_SERVER_API_AUTH_STRING": secret, "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": page, "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        **database, **settings,
    }  # fmt: skip
    _replace_settings(client)
    try:
        process = _spawn(port, log, home, environment.for_child(**server))
        started = Server(client["PREFECT_API_URL"], process, log, private=not database)
        try:
            yield started
        finally:
            started.stop()
    finally:
        _replace_settings(users)


def _replace_settings(settings: Mapping[str, str]) -> None:
    for name in [*(name for name in os.environ if name.startswith("PREFECT_")), *environment.absent_certificates()]:
        del os.environ[name]
    os.environ.update(settings)


def _spawn(port: int, log: Path, home: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [*processes.PYTHON, "-m", "flows.prefect.server_process", str(os.getpid()), str(port)]
    with log.open("ab") as file:
        return subprocess.Popen(
            command, cwd=home, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            env=variables,
            start_new_session=True,  # Ctrl-C is for the run, which still has to tell the server
        )  # fmt: skip
