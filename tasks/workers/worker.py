"""The worker's side: bring inputs from the store, run a node in a process of its own, send its outputs to the store.

Everything here runs in a Dask worker that was started in a clone of the project. The clone lends its DVC cache and its
access to the store; code and params come with the job, so the clone's own may be older or newer.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from functools import cache
from pathlib import Path

from tasks import nodes, scratch
from tasks.cache import Cache
from tasks.errors import UserError
from tasks.record import config, layout
from tasks.record.config import Remote
from tasks.record.dvc import Dvc
from tasks.record.fetching import bring
from tasks.record.git import top_level
from tasks.workers.job import Done, Job, unpack

_SHOWN = 5
"""Last lines of a failed node's output that its error quotes."""


def run(job: Job) -> Done:
    """Run a node; equal jobs leave equal bytes, on whichever worker.

    Raises:
        UserError: what the node itself would say; or this machine would make other bytes, or lacks the project's store.
        RemoteError: the store cannot be reached.
    """
    home = _home()
    _require_same(job, home)
    store = config.remote(home, job.remote)
    kept = Cache(config.cache_dir(home))
    with scratch.folder(layout.private(home) / "workers") as made, Dvc(home) as dvc:
        folder = made.resolve()
        unpack(job.code, folder)
        _workspace(folder, home, store)
        bring(job.inputs, kept, dvc, folder, f"the inputs of {job.node}")
        for path, entry in job.inputs.items():
            kept.link(entry, folder / path)
        seconds = _execute(job, folder)
        outs = {path: kept.put(folder / path) for path in job.outs}
        dvc("keep", folder, remote=job.remote, objects=sorted(kept.md5s(outs.values())))
        return Done(outs, {path: (folder / path).read_bytes() for path in job.metrics}, seconds)


def machine(threads: int | None) -> dict[str, str | int]:
    """The device and the thread count that nodes have on this worker (see `tasks.models.device_facts`)."""
    return dict(_machine(_home(), threads))


@cache
def _machine(home: Path, threads: int | None) -> dict[str, str | int]:
    """Asked in a process of its own, which leaves torch and the GPU's memory to the nodes."""
    ask = f"import json; from tasks.models import device_facts; print(json.dumps(device_facts({threads!r})))"
    done = subprocess.run([sys.executable, "-c", ask], cwd=home, capture_output=True, text=True, check=True)
    facts: dict[str, str | int] = json.loads(done.stdout)
    return facts


def _home() -> Path:
    """The clone that the worker was started in."""
    return top_level(Path.cwd())


def _require_same(job: Job, home: Path) -> None:
    here = {**nodes.versions(), **_machine(home, job.threads)}
    wanted = {**job.versions, **job.machine}
    other = [f"{name} {here.get(name)} instead of {value}" for name, value in wanted.items() if here.get(name) != value]
    if other:
        raise UserError(
            f"the worker on {socket.gethostname()} would make other bytes: it has {', '.join(other)}; give all workers "
            "one lock file and one kind of device, or stop this one"
        )


def _workspace(folder: Path, home: Path, store: Remote) -> None:
    """A folder that DVC takes for a project, with the clone's cache and store."""
    config.write_workspace(folder, home, store)
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")


def _execute(job: Job, folder: Path) -> float:
    """Run the node's command, and return its wall time in seconds.

    Raises:
        UserError: its own, or that it ended otherwise than by finishing; quotes its last lines.
    """
    from distributed import get_worker

    command = [sys.executable, "-m", "tasks.workers.child", str(os.getpid()), *job.command]
    where = socket.gethostname()
    lines: deque[str] = deque(maxlen=_SHOWN)
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stderr
        for line in process.stderr:
            lines.append(line.rstrip())
            get_worker().log_event(job.topic, f"on {where}: {line.rstrip()}")
    if process.returncode == 2 and lines and lines[-1].startswith("error: "):
        raise UserError(lines[-1].removeprefix("error: "))
    if process.returncode:
        quoted = " | ".join(lines) or "nothing"
        raise UserError(f"{job.node} on {where} ended with status {process.returncode}; it said: {quoted}")
    return round(time.monotonic() - started, 3)
