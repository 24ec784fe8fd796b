"""``chronomerge serve`` as tests start, hear and kill it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from flows.prefect.api import Api
from tasks.storage import embedded
from tests.waiting import until


def server_api(address: dict[str, str]) -> Api:
    """The API of a server as `prefect_api` tells of it, asked as patiently as `until` waits."""
    return Api(address["PREFECT_API_URL"], patience=240, sign_in=address["PREFECT_API_AUTH_STRING"])


RUNNER = "flows.processes.runner_process"
FAR_AWAY = ("serve", "--cron", "0 2 1 1 *", "--timezone", "Europe/Berlin")


def name(process: psutil.Process) -> str | None:
    """The name of a process; None where it has ended meanwhile."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return None


class Serve:
    """``chronomerge serve`` as a process, and all it says."""

    def __init__(self, folder: Path, *args: str, **environment: str):
        self.folder, self.log = folder, folder.parent / "serve.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows", *args],
                cwd=folder, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def says(self, sentence: str) -> str:
        """All it has said, once it has said this."""

        def said() -> str | None:
            text = self.log.read_text()
            assert self.process.poll() is None or sentence in text, text
            return text if sentence in text else None

        return str(until(said, self.told))

    def told(self) -> str:
        """What it, its runner and its runs have written."""
        logs = [self.log, *sorted((self.folder / ".chronomerge" / "logs").glob("*.log"))]
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in logs)

    def kill(self) -> None:
        """SIGKILL it alone; returns when all it started has noticed."""
        family = [one for one in psutil.Process(self.process.pid).children(recursive=True) if name(one) != "weed"]
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive

    def kill_run(self) -> None:
        """SIGKILL the process that Prefect's runner has started."""
        (runner,) = (one for one in psutil.Process(self.process.pid).children() if RUNNER in one.cmdline())
        (run,) = runner.children()
        run.kill()

    def end(self) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        assert not psutil.wait_procs(family, timeout=30)[1]


@contextmanager
def served(folder: Path, *args: str, **environment: str) -> Iterator[Serve]:
    serve = Serve(folder, *args, **environment)
    try:
        yield serve
    finally:
        if serve.process.poll() is None:
            serve.kill()
            embedded.stop_unused(folder)
