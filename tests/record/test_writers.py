"""Two writers of one timeline: one records, and the other is told who that is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.params import Store
from tasks.record import timelines
from tasks.record.state import State
from tasks.storage import dvc_config, embedded, lease, store
from tasks.storage.dvc import RemoteError
from tasks.storage.dvc_config import Remote
from tasks.storage.git import git
from tests import project as projects
from tests.record import made_up
from tests.record.faults import Fault, FaultPlan, proxied


@pytest.fixture
def remote(s3: Remote, tmp_path: Path) -> Remote:
    """A part of the store for one test alone."""
    return replace(s3, name="shared", url=f"{s3.url}-{tmp_path.name}")


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Path, Path]:
    """Two repositories that know nothing of each other."""
    for name in ("one", "two"):
        git(tmp_path, "init", "--quiet", name)
    return tmp_path / "one", tmp_path / "two"


def state(project: Path, step: int, commit: str) -> State:
    return State(project, "x", step, commit * 40)


def test_of_many_that_claim_a_state_one_has_it(machines: tuple[Path, Path], remote: Remote) -> None:
    def claimed(step: int, project: Path, commit: str) -> bool:
        try:
            lease.take(remote, state(project, step, commit))
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        tries = [
            (step, pool.submit(claimed, step, project, commit))
            for step in range(5)
            for project, commit in zip(machines, "ab", strict=True)
        ]
    for step in range(5):
        assert sum(done.result() for number, done in tries if number == step) == 1


def test_a_claim_is_for_good_but_for_who_made_it(machines: tuple[Path, Path], remote: Remote) -> None:
    one, two = machines
    lease.take(remote, state(one, 3, "a"))
    lease.take(remote, state(one, 3, "b"))  # the first was claimed, and then the machine lost power
    lease.take(remote, state(two, 3, "b"))  # the same commit, fetched through git
    for refused in (
        lambda: lease.take(remote, state(two, 3, "c")),
        lambda: lease.require_free(two, remote, "state/x/0003"),
    ):
        with pytest.raises(UserError, match=r"^state/x/0003 is another machine's already: .+ recorded it at .+ bbbbb"):
            refused()
    lease.require_free(one, remote, "state/x/0003")
    lease.require_free(two, remote, "state/x/0004")


def test_who_writes_is_known_to_all_that_use_the_store(machines: tuple[Path, Path], remote: Remote) -> None:
    one, two = machines
    with lease.writing(one, remote, "x"):
        with pytest.raises(UserError, match=r"'x' is being written by process \d+ on .+ since .+ with --wait"):
            lease.writing(two, remote, "x").__enter__()
        with lease.writing(two, remote, "y"):
            pass
    with lease.writing(two, remote, "x"):
        pass
    assert not store.client(remote).list_objects_v2(Bucket=remote.bucket, Prefix=remote.prefix + "/").get("Contents")


def test_strangers_in_a_store_are_named(machines: tuple[Path, Path], remote: Remote) -> None:
    one, two = machines
    lease.take(remote, state(one, 0, "a"))
    with lease.writing(one, remote, "y"):
        assert not lease.strangers(one, remote, ())
        recorded, writes = lease.strangers(two, remote, ())
        assert recorded.endswith("recorded state/x/0000, which is not here")
        assert lease.strangers(two, remote, {"a" * 40}) == [writes]
    assert writes.endswith("is writing to timeline 'y'")


def test_two_runs_that_name_their_repository_at_once_agree(machines: tuple[Path, Path], remote: Remote) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: lease._repository(machines[0], remote), range(24)))) == 1


def test_the_second_waits_for_the_first(
    machines: tuple[Path, Path], remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
    done = threading.Event()
    with lease.writing(machines[0], remote, "x"):
        ended = threading.Timer(0.5, done.set)
        ended.start()

        def second() -> bool:
            with lease.writing(machines[1], remote, "x", wait=True):
                return done.is_set()

        pool = ThreadPoolExecutor(1)
        waiting = pool.submit(second)
        done.wait()
    assert waiting.result(30)
    pool.shutdown()


def test_the_silent_are_taken_over_and_the_living_are_not(
    machines: tuple[Path, Path], remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ages are the store's, in whole seconds."""
    monkeypatch.setattr(lease, "SILENT_SECONDS", 1.5)
    one, two = machines
    with lease.writing(one, remote, "x"):
        key = f"{remote.prefix}/.chronomerge/writing/x"
        note = store.client(remote).get_object(Bucket=remote.bucket, Key=key)["Body"].read()
        time.sleep(2.5)
        with pytest.raises(UserError, match="is being written"):
            lease.writing(two, remote, "x").__enter__()
    store.client(remote).put_object(Bucket=remote.bucket, Key=key, Body=note)  # as if it had been killed
    with lease.writing(one, remote, "x"):  # its own repository need not wait
        pass
    store.client(remote).put_object(Bucket=remote.bucket, Key=key, Body=note)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.2)
    with lease.writing(two, remote, "x", wait=True):
        pass


def test_a_copy_is_another_machine_unless_its_store_was_copied_too(tmp_path: Path, remote: Remote) -> None:
    one = tmp_path / "one"
    git(tmp_path, "init", "--quiet", "one")
    own = Remote(dvc_config.EMBEDDED, remote.url, remote.options)
    embedded.folder(one).mkdir(parents=True)
    name = lease._repository(one, remote)
    assert lease._repository(one, own) == name
    shutil.copytree(one, tmp_path / "copy", symlinks=True)
    assert lease._repository(tmp_path / "copy", own) == name
    assert lease._repository(tmp_path / "copy", remote) != name
    assert lease._repository(one, remote) == name


def test_a_store_that_ignores_conditions_is_refused(machines: tuple[Path, Path], remote: Remote) -> None:
    plan = FaultPlan([Fault("deaf", "PUT")])
    with (
        proxied(remote, plan) as deaf,
        pytest.raises(UserError, match=r"ignores S3's conditional writes.*store\.git"),
        lease.writing(machines[0], deaf, "x"),
    ):
        pass
    assert not lease.needed(Store(remote="shared", git="origin"), remote)


def test_answers_that_are_lost_change_nothing(
    machines: tuple[Path, Path], remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    plan = FaultPlan([Fault("lost", "PUT", "writing", times=1), Fault("lost", "PUT", "claims", times=2)])
    with proxied(remote, plan) as flaky:
        with lease.writing(machines[0], flaky, "x"):
            lease.take(flaky, state(machines[0], 1, "a"))
        plan.faults = [Fault("500")]
        with pytest.raises(RemoteError, match=r"^store 'proxied' \(.+\) .+"):
            lease.require_free(machines[0], flaky, "state/x/0001")
    assert len(plan.happened) >= 3


RACE = """
import json, sys
from pathlib import Path
from tasks.errors import UserError
from tasks.record import sharing, timelines
from tasks.storage import dvc_config
from tasks.storage.dvc import Dvc
from tests.record import made_up

project, shared, name = Path(sys.argv[1]), sys.argv[2] or None, sys.argv[3]
remote, said = dvc_config.remote(project, name), []
with Dvc(project) as dvc:
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(6):
        try:
            if shared:
                sharing.synchronize(project, "x", shared)
            last = timelines.last(project, "x")
            if last and last.step == 2:
                break
            made_up.record(project, remote, dvc)
        except UserError as error:
            said.append(str(error))
print(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["origin", pytest.param("", marks=pytest.mark.long)], ids=["git", "S3 alone"])
def test_two_machines_race_for_three_steps(tmp_path: Path, remote: Remote, shared: str) -> None:
    """Two clones with one store, each in processes of its own, with a git remote between them and without."""
    first = made_up.project(tmp_path / "first", remote, shared or None)
    git(tmp_path, "clone", "--quiet", "--bare", str(first), "origin.git")
    for name in ("one", "two"):
        git(tmp_path, "clone", "--quiet", "origin.git", name)
        dvc_config.write_remote(tmp_path / name, remote)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path / name), shared, remote.name],
            cwd=projects.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "GIT_AUTHOR_NAME": name},  # two machines never make one commit, even in one second
        )
        for name in ("one", "two")
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    said = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        said.append(json.loads(racer.communicate(timeout=120)[0]))
        assert racer.returncode == 0
    recorded = [{s.tag: s.commit for s in timelines.states(tmp_path / name, "x")} for name in ("one", "two")]
    if shared:
        there = {s.tag: s.commit for s in timelines.states(tmp_path / "origin.git", "x")}
        assert recorded == [there, there]
        assert len(there) == 3
    else:
        assert sorted(map(len, recorded)) == [0, 3]  # whoever has the first has them all
        lost = said[0 if recorded[1] else 1]
        assert len(lost) == 6
        assert "state/x/0000 is another machine's already" in lost[0]
