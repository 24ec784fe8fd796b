"""Nodes on the workers of a real Dask scheduler: other host names, no folder in common, the store between them."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from distributed import LocalCluster

from tasks.errors import UserError
from tasks.record import rollbacks, timelines
from tasks.storage import store
from tasks.workers import keys, pool
from tests import project as projects
from tests.flows.machines import Machines
from tests.project import chronomerge, deployed, git
from tests.record.faults import FaultPlan, proxied
from tests.waiting import until

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
        projects.share(clone, self.remote)
        program = [
            "env",
            keys.SCRATCH,
            projects.program("dask"),
            "worker",
            self.address,
            "--nthreads",
            "1",
            "--no-dashboard",
        ]
        return self.machines.start(name, program, clone, self.folder / f"{name}.log")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    project = projects.make(tmp_path / "project", store=STORE)
    (tmp_path / "s3" / ".dvc").mkdir(parents=True)
    with (
        store.open_store(tmp_path / "s3", "embedded") as own,
        Machines(hidden=project) as machines,
        proxied(own, FaultPlan(), host=machines.host) as remote,
    ):
        projects.share(project, remote)
        host = machines.add("scheduler")
        note = tmp_path / "address"
        program = ["env", keys.SCRATCH, projects.program("dask"), "scheduler", "--host", host, "--port", "8786"]
        program += ["--no-dashboard", "--scheduler-file", str(note)]
        machines.start("scheduler", program, tmp_path, tmp_path / "scheduler.log")
        until(note.exists, (tmp_path / "scheduler.log").read_text)
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


@pytest.mark.long
def test_a_killed_worker_is_replaced_by_another_to_the_same_bytes(
    cluster: Cluster, run: Path, prefect_api: dict[str, str]
) -> None:
    workers = [cluster.worker(name) for name in ("one", "two")]
    process = projects.start(cluster.project, "run", "--until", "1", "--scheduler", cluster.address, **prefect_api)

    def busy() -> list[psutil.Process]:
        assert process.poll() is None, "ended before it trained"
        return [worker for worker in workers if training(worker)]

    started = kill(until(busy, every=0.02)[0])
    assert len(started) == 3, "DVC, a process that has imported, and the node"
    assert process.wait(250) == 0
    assert all(map(ended, started))
    made, wanted = deployed(cluster.project), deployed(run)
    assert made == {tag: wanted[tag] for tag in ("state/tiny/0000", "state/tiny/0001")}


@pytest.mark.long
def test_a_step_on_a_local_cluster_makes_the_same_bytes_and_its_evaluation_is_divided(
    run: Path, tmp_path: Path, prefect_api: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = projects.copy(run, tmp_path / "project")
    rollbacks.rollback(folder, "tiny", "1", wait=False)
    shutil.rmtree(folder / ".chronomerge" / "references")
    monkeypatch.chdir(folder)  # where workers start
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:  # type: ignore[no-untyped-call]
        chronomerge(folder, "run", "--scheduler", cluster.scheduler_address, **prefect_api)
        ran = {str(key).rpartition("-")[0] for key, *_ in cluster.scheduler.transition_log}
    assert {"train", "evaluate-0", "evaluate-1"} <= ran
    assert "evaluate" not in ran
    one, other = timelines.find(folder, "tiny", "2.1"), timelines.find(folder, "tiny", "2.2")
    assert other.entries == one.entries
    assert other.metrics == one.metrics


def test_what_is_wrong_with_a_cluster_is_said_before_any_work(
    cluster: Cluster, prefect_api: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = chronomerge(cluster.project, "run", "--scheduler", cluster.address, check=False, **prefect_api)
    assert refused.returncode == 2
    assert "it has no worker; start some, each in a clone of the project: DASK_TEMPORARY_DIRECTORY=" in refused.stderr
    assert projects.tags(cluster.project) == []
    monkeypatch.setattr(pool, "CONNECT_SECONDS", 1)
    with pytest.raises(UserError, match="no Dask scheduler answers"), pool.opened("tcp://127.0.0.1:9", cluster.project):
        pass
