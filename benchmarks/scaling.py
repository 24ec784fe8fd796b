"""How a grid scales from one cell worker or Dask worker to two, and what a node on a worker costs beside its own work.

    .venv/bin/python benchmarks/scaling.py                 # both tables; --results FILE: for simulate.py --validate
    .venv/bin/python benchmarks/scaling.py --only nodes    # what a node costs; --only grid: how a grid scales

The grid: two seeds of a small timeline, each a base and one arrival, so two cells that share no node; `threads: 1`,
so that two fit two cores. It runs in a project, a Prefect server and a prefix of the store of its own: without Dask in
one cell worker and in two, then on one Dask worker and on two, each in a clone of its own, with an S3 store between.
What is timed is the grid's flow, from the first cell to the last. The states must be the same bytes everywhere.

What a node costs: one timeline on one worker; the flow in this process and the worker's functions are timed (the
worker's by `spans.py`, which Dask loads there), and what they add to the node's own work is split into its parts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import psutil
import spans

from tasks.record import timelines
from tasks.storage import embedded, store
from tasks.storage.dvc_config import EMBEDDED, Remote
from tests import project as projects
from tests.project import chronomerge, git
from tests.record.faults import FaultPlan, proxied

SEEDS = (0, 1)
CORES = len(os.sched_getaffinity(0))
STEPS, BATCH = 300, 48
"""Of each training: some five seconds of one core."""
PARAMS: dict[str, Any] = {
    "base": {**projects.PARAMS["base"], "train": {"steps": STEPS, "batch_size": BATCH, "lr": 1e-3}},
    "stream": projects.PARAMS["stream"][:1],
    "train": {"steps": STEPS, "batch_size": BATCH},
    "time": {"init": "ft", "deploy": "ft", "technique": {"name": "linear"}},
    "grid": {"init": ["ft"], "deploy": ["ft"], "technique": ["linear"], "seed": list(SEEDS), "references": []},
    "store": {"remote": "shared", "git": None},
}


@dataclass(frozen=True)
class Ran:
    """A grid that has run."""

    seconds: float
    """Its flow."""
    own: list[list[float]]
    """The nodes' own work in a cell, on average, by step, in seconds, as the manifests say."""
    free: float
    """Processor cores that other work on the machine left to it, on average."""
    states: dict[str, Any]
    """Tag → what is in it, by hash."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("grid", "nodes"))
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    results: dict[str, Any] = {"cells": len(SEEDS)}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        alone(home)
        with served(home / "s3") as (remote, process):
            if given.only != "nodes":
                results |= scale(home, remote, process)
            if given.only != "grid":
                results |= split(home, remote)
    if given.results:
        given.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def alone(home: Path) -> None:
    """Nothing of the user's git and DVC settings, for this process and all that it starts."""
    settings = home / "gitconfig"
    settings.write_text(
        "[user]\n\tname = Scaling\n\temail = scaling@localhost\n[advice]\n\tdetachedHead = false\n", encoding="utf-8"
    )
    os.environ.update(
        GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL=str(settings), DVC_NO_ANALYTICS="1", DO_NOT_TRACK="1",
        DVC_GLOBAL_CONFIG_DIR=str(home / "dvc"), OMP_NUM_THREADS="1",
    )  # fmt: skip


@contextlib.contextmanager
def served(home: Path) -> Iterator[tuple[Remote, psutil.Process]]:
    """An S3 store and its process, which has ended when the block has."""
    (home / ".dvc").mkdir(parents=True)
    with store.open_store(home, EMBEDDED) as remote:
        server = embedded.running(home)
        assert server
        process = psutil.Process(server.pid)
        yield remote, process
    process.wait(30)


def scale(home: Path, remote: Remote, server: psutil.Process) -> dict[str, Any]:
    """Run the grid in all four ways, print how long it took, and return it."""
    runs: dict[tuple[str, int], Ran] = {}
    for kind, run in (("cell-workers", in_cell_workers), ("workers", on_workers)):
        for count in (1, 2):
            runs[kind, count] = ran = run(home / f"{kind}-{count}", remote, server, count)
            assert ran.states == runs["cell-workers", 1].states, f"{count} {kind} made other bytes"
            work = len(SEEDS) * sum(map(sum, ran.own))
            print(f"{count} {kind:12} {ran.seconds:7.1f} s; nodes' own work {work:7.1f} s; ", end="")
            print(f"other work left {ran.free:.1f} cores", flush=True)
    for kind in ("cell-workers", "workers"):
        one, two = (runs[kind, count].seconds for count in (1, 2))
        print(f"{kind}: {one / two:.2f} × faster by a second one; efficiency T1 / (2 T2) = {one / two / 2:.2f}")
    print(f"{len(runs['cell-workers', 1].states)} states, the same bytes in all four\n")
    return {
        "own": runs["cell-workers", 1].own,
        "ran": [[kind, count, ran.seconds, ran.free] for (kind, count), ran in runs.items()],
    }


def in_cell_workers(folder: Path, remote: Remote, server: psutil.Process, count: int) -> Ran:
    return grid(make(folder, remote), server, "--parallel", str(count))


def on_workers(folder: Path, remote: Remote, server: psutil.Process, count: int) -> Ran:
    project = make(folder, remote)
    with cluster(folder, remote, count) as address:
        return grid(project, server, "--scheduler", address)


def make(folder: Path, remote: Remote) -> Path:
    folder.mkdir()
    project = projects.make(folder / "project", **PARAMS)
    setup(project, remote, folder.name)
    return project


def setup(clone: Path, remote: Remote, prefix: str) -> None:
    options = remote.options
    chronomerge(
        clone, "remote", "setup", f"{remote.url}/{prefix}", "--name", "shared", "--region", "us-east-1",
        "--endpoint-url", options["endpointurl"],
        AWS_ACCESS_KEY_ID=options["access_key_id"], AWS_SECRET_ACCESS_KEY=options["secret_access_key"],
    )  # fmt: skip


@contextlib.contextmanager
def cluster(folder: Path, remote: Remote, count: int, *more: str) -> Iterator[str]:
    """A scheduler and its workers, each in a clone of the project; gives the scheduler's address."""
    note, dask, started = folder / "scheduler.json", projects.program("dask"), []

    def start(where: Path, *command: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(where)}
        with (folder / f"{where.name}.log").open("ab") as log:
            started.append(subprocess.Popen([dask, *command], cwd=where, env=environment, stdout=log, stderr=log))

    start(folder, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(note))
    try:
        while not note.exists():
            time.sleep(0.1)
        address = json.loads(note.read_text(encoding="utf-8"))["address"]
        for number in range(count):
            clone = folder / f"worker-{number}"
            git(folder, "clone", "--quiet", "project", clone.name)
            setup(clone, remote, folder.name)
            start(clone, "worker", address, "--nthreads", "1", "--no-dashboard", *more)
        from distributed import Client

        with Client(address) as client:
            client.wait_for_workers(count, timeout=60)
        yield address
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def grid(project: Path, server: psutil.Process, *options: str) -> Ran:
    before = time.monotonic(), busy(), used(server)
    chronomerge(project, "grid", *options)
    wall, all_work, ours = (
        now - then for now, then in zip((time.monotonic(), busy(), used(server)), before, strict=True)
    )
    database = sqlite3.connect(project / ".chronomerge" / "prefect" / "prefect.db")
    (seconds,) = database.execute(
        "select (julianday(end_time) - julianday(start_time)) * 86400 from flow_run where name like 'grid %'"
    ).fetchone()
    states = list(timelines.every(project))
    steps = [[list(s.manifest.seconds.values()) for s in states if s.step == step] for step in (0, 1)]
    own = [[fmean(seconds) for seconds in zip(*cells, strict=True)] for cells in steps]
    content = {s.tag: {path: entry.md5 for path, entry in s.entries.items()} | {"": s.metrics} for s in states}
    return Ran(seconds, own, CORES - (all_work - ours) / wall, content)


def busy() -> float:
    """Seconds that the machine's cores have worked, whoever for."""
    spent = psutil.cpu_times()
    return spent.user + spent.nice + spent.system + spent.irq + spent.softirq


def used(server: psutil.Process) -> float:
    """Seconds of cores of this process, of all that it has started, and of the store."""
    own = psutil.Process()
    return sum(sum(one.cpu_times()[:4]) for one in (own, *own.children(recursive=True), server))


def split(home: Path, remote: Remote) -> dict[str, Any]:
    """Run a timeline on one worker, print what each node of its last step cost, and return the means of both sides."""
    folder, counting = home / "nodes", FaultPlan()
    with proxied(remote, counting) as counted:  # some milliseconds a request
        project = make(folder, counted)
        note = folder / "spans.json"
        with cluster(folder, counted, 1, "--preload", spans.__file__) as address:
            from distributed import Client

            before = len(counting.asked)
            subprocess.run(
                [sys.executable, spans.__file__, str(note), "run", "--scheduler", address],
                cwd=project, env={**os.environ, "PYTHONPATH": str(project)}, check=True, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            asked = len(counting.asked) - before
            with Client(address) as client:
                theirs: list[dict[str, Any]] = [event for _, event in client.get_events(spans.TOPIC)]
    reported: list[dict[str, Any]] = json.loads(note.read_text(encoding="utf-8"))
    ours = [one for one in reported if "pool" in one]  # the others took what was there
    last = timelines.every(project)[-1]
    nodes = list(zip(ours, theirs, strict=True))[-len(last.manifest.seconds) + 1 :]
    rows = {one["node"]: parts(one, other, last.manifest.seconds[one["node"]]) for one, other in nodes}
    print(f"{'seconds':44}" + "".join(f"{name:>12}" for name in (*rows, "all")))
    for label in next(iter(rows.values())):
        values = [row[label] for row in rows.values()]
        print(f"{label:44}" + "".join(f"{value:12.2f}" for value in (*values, sum(values))))
    beside = [sum(row.values()) - row[OWN] for row in rows.values()]
    print(f"{'beside its own work':44}" + "".join(f"{value:12.2f}" for value in (*beside, sum(beside))))
    print(f"the first node, which starts processes on the worker: {parts(ours[0], theirs[0], 0)[START]:.1f} s for that")
    for one in reported:
        if one["node"].startswith("step"):
            print(f"{one['node']}: {one['whole']:.1f} s; recording {one['record']:.1f} s; ", end="")
            print(f"{one['requests to Prefect']} requests to Prefect")
    print(f"requests to the store: {asked}, for {len(ours)} nodes and {len(timelines.every(project))} states")
    sides = {
        side: fmean(sum(s for label, s in row.items() if label.startswith(side)) for row in rows.values())
        for side in ("flow", "worker")
    }
    return {**sides, "record": [one["record"] for one in reported if "record" in one][-1]}


OWN, START = "its own work", "worker: start of its process"


def parts(ours: dict[str, Any], theirs: dict[str, Any], own: float) -> dict[str, float]:
    """The seconds of a node as the flow sees it, from what was timed there and on the worker."""
    sent = ours.get("dvc keep", 0.0)
    pool = {
        "flow: inputs to the store": sent,
        "flow: packing code": ours["pack"],
        "scheduler, there and back": ours["there and back"] - theirs["whole"],
        "flow: outputs from the store": ours["fetch back"],
    }
    worker = {
        "worker: inputs from the store": theirs["inputs"],
        START: theirs["process"] - own + theirs.get("start", 0.0),
        OWN: own,
        "worker: outputs to cache and store": theirs.get("put", 0.0) + theirs["dvc keep"],
    }
    return {
        "flow: Prefect task, key, locks": ours["whole"] - ours["pool"],
        **pool,
        "flow: other": ours["pool"] - ours["there and back"] - sent - ours["pack"] - ours["fetch back"],
        **worker,
        "worker: unpacking, other": theirs["whole"] - sum(worker.values()),
    }


if __name__ == "__main__":
    main()
