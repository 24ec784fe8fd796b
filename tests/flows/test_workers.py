"""Nodes on the workers of a real Dask scheduler: other host names, no folder in common, the store between them."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tasks.errors import UserError
from tasks.record import store
from tasks.workers import pool
from tests import project as projects
from tests.flows.machines import Machines
from tests.project import chronomerge, deployed, git
from tests.record.faults import Plan, proxied

pytestmark = pytest.mark.slow

STORE = {"remote": "shared", "git": None}


@dataclass
class Cluster:
    """A project, and a scheduler whose workers are started by hand, each in a clone of its own."""

    folder: Path
    project: Path
    machines: Machines
    remote: store.Remote
    address: str

    def worker(self, name: str) -> psutil.Process:
        self.machines.add(name)
        clone = self.folder / name
        git(self.folder, "clone", "--quiet", str(self.project), name)
        setup(clone, self.remote)
        program = [projects.program("dask"), "worker", self.address, "--nthreads", "1", "--no-dashboard"]
        return self.machines.start(name, program, clone, self.folder / f"{name}.log")


def setup(clone: Path, remote: store.Remote) -> None:
    """As on a machine of its own, with its own copy of the credentials."""
    options = remote.options
    chronomerge(
        clone, "remote", "setup", remote.url, "--name", "shared", "--endpoint-url", options["endpointurl"],
        "--region", "us-east-1",
        AWS_ACCESS_KEY_ID=options["access_key_id"], AWS_SECRET_ACCESS_KEY=options["secret_access_key"],
    )  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    project = projects.make(tmp_path / "project", store=STORE)
    (tmp_path / "s3" / ".dvc").mkdir(parents=True)
    with (
        store.open_store(tmp_path / "s3", "embedded") as own,
        Machines(hidden=project) as machines,
        proxied(own, Plan(), host=machines.host) as remote,
    ):
        setup(project, remote)
        host = machines.add("scheduler")
        note = tmp_path / "address"
        program = [projects.program("dask"), "scheduler", "--host", host, "--port", "8786", "--no-dashboard"]
        machines.start("scheduler", [*program, "--scheduler-file", str(note)], tmp_path, tmp_path / "scheduler.log")
        deadline = time.monotonic() + 60
        while not note.exists():
            assert time.monotonic() < deadline, (tmp_path / "scheduler.log").read_text()
            time.sleep(0.05)
        yield Cluster(tmp_path, project, machines, remote, json.loads(note.read_text())["address"])


def training(worker: psutil.Process) -> bool:
    """Whether a worker has a node at its training: no other reads both the arrival and what training starts from."""
    for child in worker.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            step = Path(child.cwd()) / "data" / "step"
            read = (step / "init.safetensors").exists() and (step / "arrival").exists()
            if read and "tasks.workers.child" in child.cmdline():
                return True
    return False


def kill(worker: psutil.Process) -> list[psutil.Process]:
    """SIGKILL to Dask's own processes alone; returns those that the worker has started, which must notice."""
    processes = [worker, *worker.children(recursive=True)]
    started = [one for one in processes if any(part.startswith("tasks.") for part in one.cmdline())]
    for one in processes:
        if one not in started:
            one.kill()
    return started


def ended(process: psutil.Process) -> bool:
    """Also one that nobody reaps."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_worker_is_replaced_by_another_to_the_same_bytes(
    cluster: Cluster, run: Path, prefect_api: dict[str, str]
) -> None:
    workers = [cluster.worker(name) for name in ("one", "two")]
    process = projects.start(cluster.project, "run", "--until", "1", "--scheduler", cluster.address, **prefect_api)
    deadline = time.monotonic() + 200
    while not (busy := [worker for worker in workers if training(worker)]):
        assert process.poll() is None, "ended before it trained"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started = kill(busy[0])
    assert len(started) == 3, "DVC, a process that has imported, and the node"
    assert process.wait(250) == 0
    assert all(map(ended, started))
    made, wanted = deployed(cluster.project), deployed(run)
    assert made == {tag: wanted[tag] for tag in ("state/tiny/0000", "state/tiny/0001")}


def test_what_is_wrong_with_a_cluster_is_said_before_any_work(
    cluster: Cluster, prefect_api: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = chronomerge(cluster.project, "run", "--scheduler", cluster.address, check=False, **prefect_api)
    assert refused.returncode == 2
    assert "it has no worker; start some with" in refused.stderr
    assert projects.tags(cluster.project) == []
    monkeypatch.setattr(pool, "CONNECT_SECONDS", 1)
    with pytest.raises(UserError, match="no Dask scheduler answers"), pool.opened("tcp://127.0.0.1:9"):
        pass
