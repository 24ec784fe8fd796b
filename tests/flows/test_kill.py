"""SIGKILL at random moments, then the same command: the same bytes as if nothing had happened."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tasks.storage import embedded
from tests import project as projects
from tests.flows.conftest import Recorded
from tests.project import chronomerge, deployed, git
from tests.waiting import until

pytestmark = pytest.mark.slow

SEED = 20_412_061


def whole(folder: Path) -> None:
    """No half of a state anywhere: branch and pointer are at the newest tag, and each tag has all its files."""
    tags = projects.tags(folder)
    for ref in ("refs/heads/states/tiny", "refs/tags/deployed/tiny"):
        head = git(folder, "for-each-ref", "--format=%(objectname)", ref)
        assert head == (git(folder, "rev-parse", tags[-1]) if tags else "")
    for tag in tags:
        files = git(folder, "ls-tree", "-r", "--name-only", tag).splitlines()
        assert {"manifest.json", "metrics.json", "dvc.lock", "data/history.dvc"} <= set(files)
    assert git(folder, "status", "--porcelain") == ""


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.long)])
def test_killed_at_random_moments(
    kills: int, tmp_path: Path, prefect_api: dict[str, str], recorded_run: Recorded
) -> None:
    undisturbed, seconds = recorded_run
    expected = deployed(undisturbed)
    folder = projects.make(tmp_path / "project")
    moments = random.Random(SEED)
    killed = started = 0
    while killed < kills:
        started += 1
        process = projects.start(folder, "run", **prefect_api)
        left = 1 - len(projects.tags(folder)) / (len(expected) + 1)  # the start takes about as long as a step
        time.sleep(moments.uniform(0.05, 0.65) * seconds * left)  # most are forks, which need not import
        alive = process.poll() is None
        killed += alive
        projects.kill(process)
        whole(folder)
        if not alive:  # it was quicker than its killer: the next kills are for another project
            assert deployed(folder) == expected
            folder = projects.make(tmp_path / f"project-{started}")
    chronomerge(folder, "run", **prefect_api)
    whole(folder)
    assert deployed(folder) == expected
    assert "nothing to do" in chronomerge(folder, "run").stdout
    assert not list((folder / ".chronomerge" / "work" / "tiny").iterdir())


@pytest.fixture(scope="module")
def unrecorded(tmp_path_factory: pytest.TempPathFactory, prefect_api: dict[str, str]) -> Path:
    """A project whose first step fails at its very end, for want of a store, and whose code is whole again."""
    folder = projects.make(tmp_path_factory.mktemp("unrecorded") / "project")
    (folder / "tasks" / "record" / "recording.py").open("a").write(BREAK)
    done = chronomerge(folder, "run", "--until", "0", check=False, **prefect_api)
    assert done.returncode == 2
    assert "run again when the store answers" in done.stderr
    assert projects.tags(folder) == []
    git(folder, "checkout", "--quiet", "tasks/record/recording.py")
    return folder


BREAK = """

from tasks.storage.dvc import RemoteError


def record(*_: object) -> State:
    raise RemoteError("push failed: the test pulled the plug")
"""


@pytest.fixture
def finished(unrecorded: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return projects.copy(unrecorded, tmp_path / "project")


def test_finished_nodes_are_not_run_again(finished: Path, prefect_api: dict[str, str]) -> None:
    again = chronomerge(finished, "run", "--until", "0", **prefect_api)
    assert "train " not in again.stderr
    assert projects.tags(finished) == ["state/tiny/0000"]


def test_a_damaged_result_is_made_again(finished: Path, prefect_api: dict[str, str], run: Path) -> None:
    """A finished node's output is hashed before it is trusted."""
    md5 = deployed(run)["state/tiny/0000"]
    stored = finished / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    stored.chmod(0o644)
    with stored.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    again = chronomerge(finished, "run", "--until", "0", **prefect_api)
    assert "train " in again.stderr
    assert deployed(finished) == {"state/tiny/0000": md5}


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path, prefect_api: dict[str, str]) -> None:
    folder = projects.make(tmp_path / "project")
    first = projects.start(folder, "run", "--until", "0", **prefect_api)
    try:
        until(lambda: "running   nothing" not in chronomerge(folder, "status").stdout)
        second = chronomerge(folder, "run", "--until", "0", check=False, **prefect_api)
        assert second.returncode == 2
        assert f"is being written by process {first.pid} on " in second.stderr
        waited = chronomerge(folder, "run", "--until", "0", "--wait", **prefect_api)
        assert "nothing to do" in waited.stdout
    finally:
        first.wait()
    assert projects.tags(folder) == ["state/tiny/0000"]


def test_a_killed_run_leaves_no_server_of_its_own(tmp_path: Path) -> None:
    """Our own Prefect server ends with its run, however that ends."""
    folder = projects.make(tmp_path / "project")
    process = projects.start(folder, "run")
    servers = until(lambda: _servers(process.pid))
    projects.kill(process)
    psutil.wait_procs(servers, timeout=60)
    assert not any(server.is_running() for server in servers)
    embedded.stop_unused(folder)  # as the next command does with the store


@pytest.mark.long
def test_sigterm_ends_the_run_and_its_servers_and_the_run_resumes(tmp_path: Path, prefect_api: dict[str, str]) -> None:
    """SIGTERM to the whole process group, as a supervisor or a terminal sends it, with our own Prefect server."""
    folder = projects.make(tmp_path / "project")
    process = projects.start(folder, "run", "--until", "0")
    until(lambda: list(folder.glob(".chronomerge/work/tiny/0000-*")))  # the step is under way
    store = embedded.running(folder)
    assert store is not None
    for _ in range(2):  # `make` passes on what its own group was sent
        os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not _servers(process.pid)
    until(lambda: store.anywhere() is None)
    chronomerge(folder, "run", "--until", "0", **prefect_api)
    assert projects.tags(folder) == ["state/tiny/0000"]


def _servers(pid: int) -> list[psutil.Process]:
    """Our Prefect servers among the children of a process (asked of the kernel: children come and go)."""
    found = subprocess.run(
        ["pgrep", "-P", str(pid), "-f", "flows.prefect.server_process"], capture_output=True, text=True
    )
    return [psutil.Process(int(line)) for line in found.stdout.split()]
