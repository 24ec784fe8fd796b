"""Care of a project: garbage, weights of old states, and what `doctor` finds; on copies of one small timeline."""

import json
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from flows.prefect import runs
from tasks import layout
from tasks.errors import UserError
from tasks.params import load
from tasks.record import diagnosis, garbage, pruning, restoration, retention, timelines
from tasks.record.state import State
from tasks.storage import dvc_config, embedded, lease, locks, store
from tasks.storage.cache import Cache, hash_of
from tasks.storage.dvc_config import Remote
from tasks.storage.objects import Depot, in_cache, in_remote
from tests import project as projects
from tests.project import chronomerge, git

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_children")]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, prefect_api: dict[str, str]) -> Path:
    """States 0 and 1 with a folder for a store, and all that is garbage beside them freed already."""
    folder = projects.make(tmp_path_factory.mktemp("care") / "project", store={"remote": "disk"})
    move_store(folder)
    chronomerge(folder, "run", "--until", "1", **prefect_api)
    pruning.prune(folder, delete=True)
    return folder


@pytest.fixture
def project(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(garbage, "YOUNG", timedelta(0))
    return move_store(projects.copy(recorded, tmp_path / "project"))


def move_store(project: Path, to: Path | None = None) -> Path:
    """Have the store of a project in its own folder ``elsewhere``, or in another's."""
    dvc_config.write_remote(project, Remote("disk", str((to or project) / "elsewhere")))
    return project


@contextmanager
def opened(project: Path, name: str = "disk") -> Iterator[Depot]:
    with pruning.depot(project, name) as depot:
        yield depot


def of(project: Path, step: int) -> State:
    return timelines.find(project, "tiny", step)


def weights(project: Path, step: int) -> set[str]:
    """The objects that only an older state needs, of those that `retention` lets go."""
    own = Cache(dvc_config.cache_dir(project)).objects(
        entry for path, entry in of(project, step).entries.items() if path in retention.WEIGHTS
    )
    others = [e for s in timelines.states(project, "tiny") for p, e in s.entries.items()
              if s.step != step or p not in retention.WEIGHTS]  # fmt: skip
    return set(own) - set(Cache(dvc_config.cache_dir(project)).objects(others))


def restores(project: Path, clone: Path, step: int) -> None:
    """A state comes back in a fresh clone that has only git and the store."""
    git(clone.parent, "clone", "--quiet", str(project), clone.name)
    move_store(clone, project)
    state, folder = of(clone, step), clone.with_name(f"{clone.name}-restored")
    restoration.restore_into(clone, state, folder, dvc_config.remote(clone, "disk"))
    for path, entry in state.entries.items():
        assert hash_of(folder / path).md5 == entry.md5, path


def plant(project: Path, text: str) -> str:
    """An object in cache and store that nothing refers to."""
    (project / "garbage").write_text(text)
    md5 = Cache(dvc_config.cache_dir(project)).put(project / "garbage").md5
    (project / "garbage").unlink()
    with opened(project) as depot:
        depot.send([md5])
    return md5


def test_garbage_and_nothing_else_is_freed(project: Path, tmp_path: Path) -> None:
    with opened(project) as depot:
        cache, remote = in_cache(depot.cache)[0].keys(), in_remote(depot).keys()
    md5 = plant(project, "nobody wants this")
    found = pruning.prune(project)
    assert found.cache == found.remote == {md5: 17}
    assert Cache(dvc_config.cache_dir(project)).path(md5).exists()  # only looked
    pruning.prune(project, delete=True)
    with opened(project) as depot:
        assert in_cache(depot.cache)[0].keys() == cache
        assert md5 in in_remote(depot)  # --remote was not given
    pruning.prune(project, delete=True, everywhere=True)
    with opened(project) as depot:
        assert in_remote(depot).keys() == remote
    restores(project, tmp_path / "zero", 0)
    restores(project, tmp_path / "one", 1)


@pytest.mark.long
def test_a_real_s3_server_is_swept_alike(project: Path, tmp_path: Path) -> None:
    projects.write_params(project, store={"remote": "embedded"})
    freed = {plant(project, "nobody wants this"), *weights(project, 0)}
    with opened(project, "embedded") as depot:
        depot.send(in_cache(depot.cache)[0])
        with pytest.raises(UserError, match="something uses the embedded store"):
            pruning.prune(project, everywhere=True)
        git(tmp_path, "clone", "--quiet", str(project), "clone")
        lease.take(depot.remote, State(tmp_path / "clone", "theirs", 0, "f" * 40))
    with pytest.raises(UserError, match="recorded state/theirs/0000, which is not here; fetch their tags first"):
        pruning.prune(project, everywhere=True)
    with opened(project, "embedded") as depot:
        store.client(depot.remote).delete_object(
            Bucket=depot.remote.bucket, Key="states/.chronomerge/claims/state/theirs/0000"
        )
    found = pruning.prune(project, keep_last=1, delete=True, everywhere=True)
    assert freed <= found.remote.keys()
    with opened(project, "embedded") as depot:
        assert in_remote(depot).keys() == in_cache(depot.cache)[0].keys()


def test_another_machine_may_be_about_to_record_what_is_young(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "YOUNG", timedelta(days=1))
    md5 = plant(project, "pushed a moment ago")
    found = pruning.prune(project, keep_last=1, everywhere=True)
    assert found.young.keys() == {md5}
    assert md5 not in found.remote
    assert weights(project, 0) <= found.remote.keys()


def test_what_other_branches_and_worktrees_refer_to_is_no_garbage(project: Path, tmp_path: Path) -> None:
    wanted = []
    for where in ("branch", "working tree", "other worktree"):
        folder = project
        if where == "other worktree":
            folder = tmp_path / "other"
            git(project, "worktree", "add", "--quiet", str(folder))
            shutil.copy(project / ".dvc" / "config.local", folder / ".dvc" / "config.local")
        wanted.append(plant(project, where))
        (folder / "mine.dvc").write_text(f"outs:\n- md5: {wanted[-1]}\n  size: 6\n  hash: md5\n  path: mine\n")
        if where == "branch":
            git(project, "checkout", "--quiet", "-b", "aside")
            git(project, "add", "--force", "mine.dvc")
            git(project, "commit", "--quiet", "--message", "mine")
            git(project, "checkout", "--quiet", "main")
    other = plant(project, "nobody's")
    assert set(pruning.prune(project).cache) == {other}


def test_old_weights_leave_the_cache_and_come_back_from_the_store(project: Path, tmp_path: Path) -> None:
    freed = weights(project, 0)
    assert freed
    found = pruning.prune(project, keep_last=1, delete=True)
    assert found.letting_go == (of(project, 0),)
    assert freed <= found.cache.keys()
    assert retention.let_go(project) == {}
    state = of(project, 0)
    assert (
        restoration.restore_into(project, state, tmp_path / "restored", dvc_config.remote(project, "disk")).fetched > 0
    )
    assert pruning.prune(project, keep_last=1).staying == (
        f"state/tiny/0000 stays: it is checked out in {tmp_path}/restored",
    )


def test_old_weights_that_the_store_lacks_stay_in_the_cache(project: Path) -> None:
    lost = weights(project, 0)
    with opened(project) as depot:
        depot.discard(lost)
    found = pruning.prune(project, keep_last=1, delete=True)
    assert found.only_here.keys() == lost
    assert not Cache(dvc_config.cache_dir(project)).missing(of(project, 0).entries[layout.DEPLOYED])


def test_weights_let_go_are_noted_and_an_interrupted_run_goes_on(
    project: Path, tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    """All nodes of step 2 end, its recording does not; a sweep between the two costs nothing that is wanted."""
    module = project / "tasks" / "record" / "recording.py"
    code = module.read_text()
    module.write_text(code + "\n\ndef record(*_: object) -> State:\n    raise KeyError('the test pulled the plug')\n")
    chronomerge(project, "run", check=False, **prefect_api)
    module.write_text(code)
    freed = weights(project, 0)
    assert pruning.prune(project, keep_last=1, delete=True, everywhere=True).unfinished
    with opened(project) as depot:
        assert not freed & in_cache(depot.cache)[0].keys()
        assert not freed & in_remote(depot).keys()
    assert not diagnosis.doctor(project).findings
    restores(project, tmp_path / "one", 1)
    for where in (project, tmp_path / "one"):  # the clone has the tags, not the notes
        with pytest.raises(UserError, match=r"state/tiny/0000: its weights were let go on 20"):
            restoration.restore_into(where, of(where, 0), tmp_path / "zero", dvc_config.remote(where, "disk"))
        assert not (tmp_path / "zero").exists()
    again = chronomerge(project, "run", **prefect_api)
    assert "train " not in again.stderr
    assert "recorded state/tiny/0002" in again.stdout


def test_a_kept_tag_keeps_its_weights(project: Path) -> None:
    assert pruning.prune(project, keep_last=1, keep_tags=["state/tiny/0000"]).letting_go == ()
    assert pruning.prune(project, keep_tags=["state/tiny/0001"]).letting_go == (of(project, 0),)
    with pytest.raises(UserError, match="--keep-tag state/tiny/7: no state has that tag"):
        pruning.prune(project, keep_tags=["state/tiny/7"])


def test_killed_halfway_the_next_sweep_ends_it(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freed = weights(project, 0)

    def half(depot: Depot, objects: dict[str, int]) -> None:
        depot.dvc("discard", depot.project, remote="disk", objects=sorted(objects)[: len(objects) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Depot, "discard", half)
        with pytest.raises(KeyboardInterrupt):
            pruning.prune(project, keep_last=1, delete=True, everywhere=True)
    assert retention.let_go(project).keys() == {of(project, 0).commit}
    restores(project, tmp_path / "between", 1)
    pruning.prune(project, delete=True, everywhere=True)
    with opened(project) as depot:
        assert not freed & in_cache(depot.cache)[0].keys()
        assert not freed & in_remote(depot).keys()
    restores(project, tmp_path / "after", 1)


def test_refuses_while_a_timeline_is_held(project: Path) -> None:
    with (
        locks.writing(project, "other"),
        pytest.raises(UserError, match=r"in use \(timeline 'other' by process \d+ on "),
    ):
        pruning.prune(project)
    with (
        locks.alone(project),
        pytest.raises(UserError, match="`chronomerge gc` is deleting"),
        locks.writing(project, "x"),
    ):
        pass


def test_results_grow_too_old_to_be_waited_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = (project / ".chronomerge" / "references").iterdir()
    result, text = next((path, text) for path in results if "metrics.json" in (text := path.read_text()))
    md5 = plant(project, "half a day's training")
    reference = json.loads(text)
    reference["outs"]["metrics.json"]["md5"] = md5
    result.write_text(json.dumps(reference))
    assert md5 in pruning.prune(project).unfinished
    monkeypatch.setattr(garbage.time, "time", lambda now=time.time: now() + garbage.UNFINISHED.total_seconds())
    assert md5 in pruning.prune(project).cache


def test_states_of_other_machines_count(project: Path, tmp_path: Path) -> None:
    """A clone that has fetched nothing must not take the others' states for garbage."""
    git(tmp_path, "init", "--quiet", "--bare", "shared.git")
    git(project, "remote", "add", "origin", str(tmp_path / "shared.git"))
    projects.write_params(project, store={"remote": "disk", "git": "origin"})
    git(project, "push", "--quiet", "origin", "main", "--tags")
    for tag in projects.tags(project):
        git(project, "tag", "--delete", tag)
    git(project, "branch", "-D", "states/tiny")
    found = pruning.prune(project)
    assert not found.cache
    assert not found.remote
    assert len(projects.tags(project)) == 2
    state = of(project, 0)
    pruning.prune(project, keep_last=1, delete=True, everywhere=True)
    assert retention.NOTES in git(tmp_path / "shared.git", "for-each-ref", "--format=%(refname)")
    assert state.commit in retention.let_go(project)


def found(project: Path) -> dict[str, str]:
    """What a doctor finds → where."""
    return {finding.what: finding.where for finding, _ in diagnosis.doctor(project, also=[runs.unended]).findings}


def mended(project: Path) -> None:
    """All that is found now is mended, and then nothing is found."""
    report = diagnosis.doctor(project, repair=True, also=[runs.unended])
    assert report.findings
    assert [(finding.what, why) for finding, why in report.findings if why] == []
    assert not found(project)


DEAD = 4_194_305  # no process has this id: it is above the kernel's limit


def test_leftovers_of_dead_processes_are_removed(project: Path, tmp_path: Path) -> None:
    assert not diagnosis.doctor(project).findings
    private = project / ".chronomerge"
    stale = private / "work" / "tiny" / f"0002-{DEAD}"
    git(project, "worktree", "add", "--quiet", "--detach", str(stale))
    (stale / "half.safetensors").write_bytes(b"...")
    kept, deleted = tmp_path / "kept", tmp_path / "deleted"
    for folder in (kept, deleted, tmp_path / f".half.part-{DEAD}"):
        git(project, "worktree", "add", "--quiet", "--detach", str(folder), "state/tiny/0001")
    shutil.rmtree(deleted)
    (project / ".git" / "chronomerge" / "tiny.lock").write_text('{"host": "here", "pid": 1, "since": "then"}')
    (project / ".dvc" / "cache" / "files" / "md5" / "ab").mkdir(exist_ok=True)
    (project / ".dvc" / "cache" / "files" / "md5" / "ab" / f".part-{DEAD}-model").write_bytes(b"...")
    (private / "tmp").mkdir(exist_ok=True)
    (private / "tmp" / f"index-{DEAD}.lock").write_bytes(b"...")
    (private / f"prefect-{DEAD}").mkdir()
    for tree in (project, kept):
        (tree / ".dvc" / "tmp").mkdir(exist_ok=True)
        (tree / ".dvc" / "tmp" / "rwlock").write_text("")
    with locks.writing(project, "tiny"):  # its writer is at work: that is its own folder
        report = diagnosis.doctor(project, repair=True)
        assert "the working folder of a dead run" not in {finding.what for finding, _ in report.findings}
        assert "timeline 'tiny' is being written by process" in report.skipped[0]
    (project / ".git" / "chronomerge" / "tiny.lock").write_text('{"host": "here", "pid": 1, "since": "then"}')
    assert found(project).keys() == {
        "a dead writer's note in the lock of timeline 'tiny'",
        "the working folder of a dead run",
    }
    mended(project)
    assert git(project, "worktree", "list").count("\n") == 1  # the project and the folder that was kept


def test_bytes_are_mended_from_wherever_they_are_good(project: Path) -> None:
    cache, (one, two, three) = (
        Cache(dvc_config.cache_dir(project)),
        sorted(weights(project, 0) | weights(project, 1))[:3],
    )
    good = cache.path(one).read_bytes()
    cache.path(one).chmod(0o644)
    cache.path(one).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with opened(project) as depot:
        depot.discard([two])
    (project / "elsewhere/files/md5" / three[:2] / three[2:]).write_bytes(b"cut")
    report = found(project)
    assert one[2:] in report["damaged bytes in the cache"]
    assert "1 object of state/tiny/000" in report["objects that the store lacks"]
    assert "1 object of state/tiny/000" in report["objects of another size in the store"]
    mended(project)
    assert cache.path(one).read_bytes() == good


def test_what_nobody_has_is_named_and_nothing_is_thrown_away(project: Path) -> None:
    cache, deployed = Cache(dvc_config.cache_dir(project)), of(project, 1).entries[layout.DEPLOYED].md5
    with opened(project) as depot:
        depot.discard([deployed])
    cache.path(deployed).chmod(0o644)
    cache.path(deployed).write_bytes(b"damaged")
    report = diagnosis.doctor(project, repair=True)
    assert not report.healthy
    assert {finding.what for finding, _ in report.findings} == {
        "damaged bytes in the cache",
        "an object that is nowhere",
    }
    nowhere = found(project)["an object that is nowhere"]
    assert f"state/tiny/0001 {layout.DEPLOYED}" in nowhere
    assert f"(object {deployed})" in nowhere
    assert (project / ".chronomerge" / "damaged" / deployed).read_bytes() == b"damaged"


def test_records_and_branches(project: Path) -> None:
    git(project, "update-ref", "refs/heads/states/tiny", "state/tiny/0000")
    assert "branch states/tiny is behind" in found(project)
    mended(project)
    assert git(project, "rev-parse", "states/tiny") == of(project, 1).commit
    git(project, "update-ref", "refs/heads/states/tiny", "main")
    assert "branch states/tiny is at no state" in found(project)
    git(project, "update-ref", "refs/heads/states/tiny", "state/tiny/0001")
    git(project, "checkout", "--quiet", "--detach", "state/tiny/0001")
    (project / "manifest.json").write_text('{"inputs": {')
    git(project, "commit", "--quiet", "--all", "--message", "damaged")
    git(project, "tag", "state/broken/0000")
    git(project, "checkout", "--quiet", "main")
    report = diagnosis.doctor(project, repair=True)
    assert [(finding.what, finding.where[:17]) for finding, _ in report.findings] == [
        ("a damaged manifest.json", "state/broken/0000")
    ]
    assert not report.healthy
    with pytest.raises(UserError, match=r"state/broken/0000: manifest\.json cannot be read"):
        pruning.prune(project)


def test_a_git_remote_gets_what_it_lacks(project: Path, tmp_path: Path) -> None:
    store_of_all = load(project / "params.yaml").store
    projects.write_params(project, store={"remote": store_of_all.remote, "git": "origin"})
    git(project, "remote", "add", "origin", str(tmp_path / "shared.git"))
    assert "git remote 'origin' cannot be reached" in found(project)
    git(tmp_path, "init", "--quiet", "--bare", "shared.git")
    assert found(project)["states that git remote 'origin' lacks"] == "state/tiny/0000, state/tiny/0001"
    mended(project)
    assert projects.tags(tmp_path / "shared.git") == projects.tags(project)


def test_an_s3_store_is_looked_after(project: Path) -> None:
    projects.write_params(project, store={"remote": "embedded"})
    with store.open_store(project, "embedded") as remote:
        s3 = store.client(remote)
        for key in ("states/files/md5/ab/cd", "others/ab"):
            s3.create_multipart_upload(Bucket=remote.bucket, Key=key)
        time.sleep(1)  # the store tells times in seconds
        assert found(project)["an upload that was never ended"] == "s3://chronomerge/states/files/md5/ab/cd"
        mended(project)  # all objects of the states too, which this store has not seen yet
        assert [u["Key"] for u in s3.list_multipart_uploads(Bucket=remote.bucket)["Uploads"]] == ["others/ab"]
    projects.write_params(project, store={"remote": "nowhere"})
    assert "no DVC remote is named 'nowhere'" in diagnosis.doctor(project).findings[0][0].meaning


def test_a_store_that_a_killed_run_left_running_is_stopped(project: Path) -> None:
    projects.write_params(project, store={"remote": "embedded"})
    script = (
        "import os, sys; from pathlib import Path; from tasks.storage import embedded\n"
        "with embedded.serving(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([projects.program("python"), "-c", script, str(project)], cwd=project, check=False)
    assert embedded.running(project)
    mended(project)
    assert embedded.running(project) is None


def test_runs_that_were_killed_are_told_to_prefect(project: Path, prefect_api: dict[str, str]) -> None:
    home = project / ".chronomerge" / "prefect"
    home.mkdir()
    with (
        closing(sqlite3.connect(Path(prefect_api["PREFECT_HOME"]) / "prefect.db")) as theirs,
        closing(sqlite3.connect(home / "prefect.db")) as ours,
    ):
        theirs.backup(ours)
        ours.execute("UPDATE flow_run SET state_type = 'COMPLETED', state_name = 'Completed'")  # other workers' too
        ((killed,), *_) = ours.execute("SELECT id FROM flow_run WHERE name = 'tiny to step 1'").fetchall()
        ours.execute("UPDATE flow_run SET state_type = 'RUNNING', state_name = 'Running' WHERE id = ?", [killed])
        ours.commit()
    assert found(project) == {"runs that Prefect calls running": "tiny to step 1"}
    mended(project)
    with closing(sqlite3.connect(home / "prefect.db")) as ours:
        rows = ours.execute("SELECT state_type FROM flow_run WHERE id = ?", [killed]).fetchall()
    assert rows == [("CRASHED",)]


def test_the_command_tells_and_mends(project: Path) -> None:
    (project / ".dvc" / "tmp").mkdir(exist_ok=True)
    (project / ".dvc" / "tmp" / "rwlock").write_text("")
    sick = chronomerge(project, "doctor", check=False)
    assert sick.returncode == 1
    assert "--repair would delete it" in sick.stdout
    assert "1 finding left" in sick.stdout
    assert "repaired: delete it" in chronomerge(project, "doctor", "--repair").stdout
    assert "can be freed" in chronomerge(project, "gc", "--keep-last", "1", "--remote").stdout
