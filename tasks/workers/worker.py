"""The side of the worker: fetch inputs from the store, run a node in a process of its own, push its outputs.

This module runs in a Dask worker that was started in a clone of the project. It uses the DVC cache and the store access
of the clone; code and params come with the job, so those of the clone may be older or newer.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

from tasks import environment, layout, nodes, processes
from tasks.errors import UserError
from tasks.storage import atomic, dvc_config, embedded
from tasks.storage.cache import Cache
from tasks.storage.dvc_config import Remote
from tasks.storage.fetching import bring
from tasks.storage.git import top_level
from tasks.workers import warm_pool
from tasks.workers.job import Done, Job, unpack
from tasks.workers.warm_pool import WarmProcess

_SHOWN = 5
"""Last lines of a failed node's output that its error quotes."""


def run(job: Job) -> Done:
    """Run a node. Equal jobs make equal bytes on every worker.

    Raises:
        UserError: the error of the node; or this machine would make other bytes, or does not have the project's store.
        RemoteError: the store cannot be reached.
    """
    from distributed import get_worker

    home = _home()
    _require_same(job, home)
    store = _store(home, job.remote)
    cached = Cache(dvc_config.cache_dir(home))
    with (
        warm_pool.warm_process(home, job.code) as process,
        warm_pool.dvc(home) as dvc,
        atomic.private_folder(layout.private(home) / "workers") as made,
    ):
        folder = made.resolve()
        unpack(job.code, folder)
        unpack(job.settings, folder)
        _workspace(folder, home, store)
        bring(job.inputs, cached, dvc, folder, f"the inputs of {job.node}")
        for path, entry in job.inputs.items():
            cached.link(entry, folder / path)
        seconds = _execute(job, folder, process, get_worker())
        outs = {path: cached.put(folder / path) for path in job.outs}
        dvc("keep", folder, remote=job.remote, objects=sorted(cached.md5s(outs.values())))
        metrics = {path: (folder / path).read_bytes() for path in job.metrics}
        return Done(outs, metrics, seconds, get_worker().address)


def machine(threads: int | None) -> dict[str, str | int]:
    """The device and the thread count that nodes have on this worker (see `tasks.model.models.device_facts`)."""
    return dict(_machine(_home(), threads))


@cache
def _machine(home: Path, threads: int | None) -> dict[str, str | int]:
    """Computed in a process of its own, so that this one does not import torch or use GPU memory."""
    ask = f"import json; from tasks.model.models import device_facts; print(json.dumps(device_facts({threads!r})))"
    done = subprocess.run(
        [*processes.PYTHON, "-c", ask],
        cwd=home, env=environment.for_child(), capture_output=True, text=True, check=True, encoding="utf-8"
    )  # fmt: skip
    facts: dict[str, str | int] = json.loads(done.stdout)
    return facts


def _home() -> Path:
    """The clone that the worker was started in."""
    return top_level(Path.cwd())


def _require_same(job: Job, home: Path) -> None:
    own = {**nodes.versions(), **_machine(home, job.threads)}
    wanted = {**job.versions, **job.machine}
    other = [f"{name} {own.get(name)} instead of {value}" for name, value in wanted.items() if own.get(name) != value]
    if other:
        raise UserError(
            f"the worker on {socket.gethostname()} would make other bytes: it has {', '.join(other)}; give all workers "
            "one lock file and one kind of device, or stop this one"
        )


def _store(home: Path, name: str) -> Remote:
    """The store as the clone of this worker reaches it; the embedded store has another address after each start."""
    try:
        return embedded.address(home) if name == dvc_config.EMBEDDED else dvc_config.remote(home, name)
    except UserError as error:
        raise UserError(f"the worker on {socket.gethostname()} cannot reach the store: {error}") from None


def _workspace(folder: Path, home: Path, store: Remote) -> None:
    """Make a folder a DVC project that uses the cache and the store of the clone."""
    dvc_config.write_workspace(folder, home, store)
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n", encoding="utf-8")


def _execute(job: Job, folder: Path, process: WarmProcess, worker: Any) -> float:
    """Run the node's command, and return its wall time in seconds.

    Raises:
        UserError: its own error, or that it ended early, with its last lines.
    """
    where = socket.gethostname()
    lines: deque[str] = deque(maxlen=_SHOWN)

    def on_line(line: str) -> None:
        lines.append(line)
        worker.log_event(job.topic, f"on {where}: {line}")

    status, seconds = process.run(folder, job.command, on_line)
    if status == 2 and lines and lines[-1].startswith("error: "):
        raise UserError(lines[-1].removeprefix("error: "))
    if status:
        quoted = " | ".join(lines) or "none"
        raise UserError(f"{job.node} on {where} ended with status {status}; its last output: {quoted}")
    return seconds
