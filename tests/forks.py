"""Calls of the command line as forks of a process that has imported everything: seconds less for each."""

from __future__ import annotations

import functools
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from hashlib import md5
from pathlib import Path
from typing import IO, Any, Self

from filelock import FileLock

from tasks import fork_call

FOLDER: Path | None = None
"""A folder that all workers of a test session share; None outside of one, where nothing is forked."""
START_SECONDS = 240
FORKED = ("dvc", "flows.processes.cell_worker_process", "tasks.record.node_server", "tasks.storage.dvc_process")
"""Processes that a command starts, which import much."""


class Forked:
    """A forked process, used as a `subprocess.Popen`."""

    stdin: IO[str] | None = None
    stdout: IO[str] | None = None

    def __init__(self, connection: socket.socket, stacks: Path):
        """``stacks`` is a folder in which the fork says what its threads do when SIGUSR1 asks it."""
        self._stacks = stacks
        self._answers = connection.makefile("rb")
        self._connection = connection
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0, stderr=self._stack())
            self._end()
        assert self.returncode is not None
        return self.returncode

    def _stack(self) -> bytes:
        """What the threads of the process do; it is printed with the test that waited too long."""
        os.kill(self.pid, signal.SIGUSR1)
        time.sleep(1)
        said = (self._stacks / f"stack-{self.pid}").read_bytes()
        print(said.decode())
        return said

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _end(self) -> None:
        line = self._answers.readline()
        assert line, "the fork server is gone"
        self.returncode = int(line)
        self._answers.close()
        self._connection.close()


class ForkServer:
    """The fork server of a test session; all its workers share one, which ends with the last of them."""

    def __init__(self, folder: Path):
        self._folder, self._path = folder, folder / "forks"
        if len(str(self._path)) > 90:  # the kernel takes 107 characters
            self._path = Path(tempfile.gettempdir()) / f"chronomerge-{md5(os.fsencode(folder)).hexdigest()}"
        with FileLock(folder / "forks.lock"):
            try:
                self._session = self._connected()
            except (FileNotFoundError, ConnectionRefusedError):  # none yet, or it ended with the last who used it
                self._start(folder / "forks.log")
                self._session = self._connected()
            fork_call.send(self._session, {}, ())

    def _start(self, log: Path) -> None:
        self._path.unlink(missing_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.fork_server", str(self._path)],
                cwd=Path(__file__).parents[1], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True, env={**os.environ, "XDG_CACHE_HOME": str(self._folder / "cache")},
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while not self._path.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)

    def _connected(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._path))
        return connection

    def start(
        self,
        cwd: Path,
        environment: Mapping[str, str],
        streams: Sequence[int],
        module: str,
        *arguments: str,
        forking: bool = False,
    ) -> Forked:
        """Run a module as ``python -m`` would, in a session of its own; its stdin, stdout and stderr are given.

        With ``forking`` its processes of `FORKED` are forks too; not for a process that is killed.
        """
        connection = self._connected()
        call = {
            "arguments": [module, *arguments], "folder": str(cwd), "environment": dict(environment),
            "forking": str(self._folder) if forking else None, "stacks": str(self._folder),
        }  # fmt: skip
        fork_call.send(connection, call, streams)
        return Forked(connection, self._folder)

    def close(self) -> None:
        self._session.close()


class Popen(subprocess.Popen[Any]):
    """As its base; a process of `FORKED` is a fork, which does not notice when the one that starts it is killed."""

    def __new__(cls, command: Any, **options: Any) -> Self:
        if isinstance(command, list) and "-m" in command[1:3]:
            started = command[command.index("-m") + 1 :]
            if started[0] in FORKED:
                return _connected(started, **options)  # type: ignore[return-value]
        return super().__new__(cls)


def _connected(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: int,
    stderr: IO[Any] | int,
    errors: str | None = None,
    **_: Any,
) -> Forked:
    """Run a module in a session of its own, with a pipe from its stdout and, where asked for, one to its stdin."""
    (ours_out, theirs_out), nothing = os.pipe(), os.open(os.devnull, os.O_RDONLY)
    theirs_in, ours_in = os.pipe() if stdin == subprocess.PIPE else (nothing, None)
    theirs_errors = theirs_out if isinstance(stderr, int) else stderr.fileno()
    process = server().start(cwd, env, (theirs_in, theirs_out, theirs_errors), *command)
    for number in {theirs_in, theirs_out, nothing}:
        os.close(number)
    process.stdout = os.fdopen(ours_out, errors=errors)
    process.stdin = None if ours_in is None else os.fdopen(ours_in, "w")
    return process


@functools.cache
def server() -> ForkServer:
    """The fork server of this session, started when first asked for."""
    assert FOLDER
    return ForkServer(FOLDER)
