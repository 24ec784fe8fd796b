"""What commands cost before and beside their work: imports, servers, and the recording of a state.

    .venv/bin/python benchmarks/startup.py [--repeat 3]

Runs commands of the command line on a tiny project in a temporary folder, each in a process from nothing, and beside
each a named limit or peer on the same files: what libraries cost to import, Prefect's own server until it answers,
DVC's own `checkout` and `commit`. Prints seconds of a processor (with all processes that a command started and saw end)
and of the clock: the least of ``--repeat`` for commands that change nothing, one measurement for those that do. A
recorded state is what a run of two states takes beyond a run of one. Says which goals are met (seconds of the clock,
on a machine that does nothing else), and ends with status 1 if one is not.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from tests import project as projects

QUIET = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
GOALS = {"run, two states": 6.0, "a recorded state": 2.0, "report": 5.0}
"""Row → seconds of the clock."""


@dataclass(frozen=True)
class Cost:
    """Seconds of a processor, and of the clock."""

    cpu: float
    wall: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.cpu + other.cpu, self.wall + other.wall)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.cpu - other.cpu, self.wall - other.wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="measurements of a command that changes nothing")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sys.exit(0 if measure(Path(name), given.repeat) else 1)


def measure(folder: Path, repeat: int) -> bool:
    """Measure, print, and tell whether all goals are met."""
    project = projects.make(folder / "project")
    clone = folder / "clone"

    def chronomerge(*arguments: str) -> Cost:
        return cost(project, sys.executable, "-m", "flows", *arguments)

    def imported(*modules: str) -> Cost:
        return least(repeat, lambda: cost(project, sys.executable, "-c", f"import {', '.join(modules)}"))

    bare = imported("sys")
    typer, tables = imported("typer"), imported("altair", "pandas", "pyarrow", "vl_convert")
    models = imported("torch", "open_clip")
    started = imported("prefect.main") + least(repeat, lambda: server(folder)) + models
    first = chronomerge("run", "--until", "0")
    two = chronomerge("run", "--until", "2")
    projects.git(folder, "clone", "--quiet", "--branch", "state/tiny/0001", str(project), str(clone))
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "cache", "dir", "--local", "--quiet", str(project / ".dvc/cache")], cwd=clone, check=True)
    checkout = cost(clone, *dvc, "checkout", "--quiet")
    commit = least(repeat, lambda: cost(clone, *dvc, "commit", "--force", "--quiet"))
    rows = {
        "--version": (least(repeat, lambda: chronomerge("--version")), "import typer", typer),
        "--help": (least(repeat, lambda: chronomerge("--help")), "import typer", typer),
        "import chronomerge": (imported("chronomerge"), "python", bare),
        "states": (least(repeat, lambda: chronomerge("states")), "import typer", typer),
        "report": (least(repeat, lambda: chronomerge("report")), "import altair, pandas, pyarrow, vl_convert", tables),
        "run, one state": (first, "import torch, open_clip, prefect; prefect server start", started),
        "run, two states": (two, "import torch, open_clip, prefect; prefect server start", started),
        "a recorded state": (two - first, "dvc commit --force", commit),
        "verify": (least(repeat, lambda: chronomerge("verify", "1")), "import torch, open_clip", models),
        "restore": (chronomerge("restore", "1", "--to", str(folder / "restored")), "dvc checkout", checkout),
    }
    print(f"{'':20} {'CPU s':>7} {'wall s':>7}   {'CPU s':>7} {'wall s':>7}  of the peer")
    for name, (own, peer, its) in rows.items():
        print(f"{name:20} {own.cpu:7.2f} {own.wall:7.2f}   {its.cpu:7.2f} {its.wall:7.2f}  {peer}")
    print(f"\nload of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    met = {name: rows[name][0].wall <= goal for name, goal in GOALS.items()}
    for name, goal in GOALS.items():
        print(f"{'met   ' if met[name] else 'MISSED'}  {name}: {rows[name][0].wall:.1f} s  (goal {goal:.0f} s)")
    return all(met.values())


def least(repeat: int, measured: Callable[[], Cost]) -> Cost:
    """The measurement with the least processor time: what other work adds is not the command's."""
    return min((measured() for _ in range(repeat)), key=lambda one: one.cpu)


def cost(folder: Path, *command: str) -> Cost:
    """Run a command to its end.

    Raises:
        RuntimeError: it fails; has what it printed.
    """
    with tempfile.TemporaryFile() as printed:
        started = time.monotonic()
        process = _begun(folder, command, printed.fileno(), {})
        spent = _ended(process, started)
        if process.returncode:
            printed.seek(0)
            raise RuntimeError(f"{' '.join(command)}: status {process.returncode}\n{printed.read().decode()}")
    return spent


def server(folder: Path) -> Cost:
    """Prefect's own server in a home with an empty database of its own, from its start until it answers."""
    with tempfile.TemporaryDirectory(dir=folder) as home, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        started = time.monotonic()
        process = _begun(folder, command, subprocess.DEVNULL, {"PREFECT_HOME": home, "PREFECT_UI_ENABLED": "false"})
        with _terminated(process, started) as spent:
            while not _answers(port):
                if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    raise RuntimeError("prefect server start ended before it answered")
                time.sleep(0.05)
        return spent[0]


@contextmanager
def _terminated(process: subprocess.Popen[bytes], started: float) -> Iterator[list[Cost]]:
    """What a process has cost when the block ends, with which it ends too."""
    spent: list[Cost] = []
    try:
        yield spent
    finally:
        wall = time.monotonic() - started
        process.terminate()
        spent.append(Cost(_ended(process, started).cpu, wall))


def _begun(
    folder: Path, command: tuple[str, ...] | list[str], output: int, more: dict[str, str]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, **QUIET, **more}, stdin=subprocess.DEVNULL, stdout=output,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def _ended(process: subprocess.Popen[bytes], started: float) -> Cost:
    """Wait for a process; its cost includes that of the processes it waited for."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Cost(used.ru_utime + used.ru_stime, time.monotonic() - started)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    main()
