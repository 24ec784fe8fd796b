"""The worker's side: bring inputs from the store, run a node in a process of its own, send its outputs to the store.

Everything here runs in a Dask worker that was started in a clone of the project. The clone lends its DVC cache and its
access to the store; code and params come with the job, so the clone's own may be older or newer.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

from tasks import layout, nodes
from tasks.errors import UserError
from tasks.storage import atomic, dvc_config, embedded
from tasks.storage.cache import Cache
from tasks.storage.dvc_config import Remote
from tasks.storage.fetching import bring
from tasks.storage.git import top_level
from tasks.workers import kept
from tasks.workers.job import Done, Job, unpack
from tasks.workers.kept import Nursery

_SHOWN = 5
"""Last lines of a failed node's output that its error quotes."""


def run(job: Job) -> Done:
    """Run a node; equal jobs leave equal bytes, on whichever worker.

    Raises:
        UserError: what the node itself would say; or this machine would make other bytes, or lacks the project's store.
        RemoteError: the store cannot be reached.
    """
    from distributed import get_worker

    home = _home()
    _require_same(job, home)
    store = _store(home, job.remote)
    cached = Cache(dvc_config.cache_dir(home))
    with (
        kept.nursery(home, job.code) as nursery,
        kept.dvc(home) as dvc,
        atomic.private_folder(layout.private(home) / "workers") as made,
    ):
        folder = made.resolve()
        unpack(job.code, folder)
        unpack(job.settings, folder)
        _workspace(folder, home, store)
        bring(job.inputs, cached, dvc, folder, f"the inputs of {job.node}")
        for path, entry in job.inputs.items():
            cached.link(entry, folder / path)
        seconds = _execute(job, folder, nursery, get_worker())
        outs = {path: cached.put(folder / path) for path in job.outs}
        dvc("keep", folder, remote=job.remote, objects=sorted(cached.md5s(outs.values())))
        metrics = {path: (folder / path).read_bytes() for path in job.metrics}
        return Done(outs, metrics, seconds, get_worker().address)


def machine(threads: int | None) -> dict[str, str | int]:
    """The device and the thread count that nodes have on this worker (see `tasks.model.models.device_facts`)."""
    return dict(_machine(_home(), threads))


@cache
def _machine(home: Path, threads: int | None) -> dict[str, str | int]:
    """Asked in a process of its own, which leaves torch and the GPU's memory to the nodes."""
    ask = f"import json; from tasks.model.models import device_facts; print(json.dumps(device_facts({threads!r})))"
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


def _store(home: Path, name: str) -> Remote:
    """The worker's own way to the store; the embedded store has another address after each start."""
    try:
        return embedded.address(home) if name == dvc_config.EMBEDDED else dvc_config.remote(home, name)
    except UserError as error:
        raise UserError(f"the worker on {socket.gethostname()} cannot reach the store: {error}") from None


def _workspace(folder: Path, home: Path, store: Remote) -> None:
    """A folder that DVC takes for a project, with the clone's cache and store."""
    dvc_config.write_workspace(folder, home, store)
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")


def _execute(job: Job, folder: Path, nursery: Nursery, worker: Any) -> float:
    """Run the node's command, and return its wall time in seconds.

    Raises:
        UserError: its own, or that it ended otherwise than by finishing; quotes its last lines.
    """
    where = socket.gethostname()
    lines: deque[str] = deque(maxlen=_SHOWN)

    def hear(line: str) -> None:
        lines.append(line)
        worker.log_event(job.topic, f"on {where}: {line}")

    status, seconds = nursery.run(folder, job.command, hear)
    if status == 2 and lines and lines[-1].startswith("error: "):
        raise UserError(lines[-1].removeprefix("error: "))
    if status:
        quoted = " | ".join(lines) or "nothing"
        raise UserError(f"{job.node} on {where} ended with status {status}; it said: {quoted}")
    return seconds
