"""Going through a timeline that ran for real: verify, roll back and go on, compare, restore to odd places."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from flows.cli import comparison, tables
from tasks import layout
from tasks.errors import UserError
from tasks.record import commits, difference, restoration, retention, rollbacks, timelines, verification
from tasks.storage import dvc_config, locks
from tasks.storage.cache import Cache
from tasks.storage.git import git as plumbing
from tests import project as projects
from tests.flows.conftest import NO_PICKLES
from tests.project import chronomerge, git

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def copy(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, whose timeline may grow and go back."""
    return projects.copy(run, tmp_path_factory.mktemp("copy") / "project")


def worktrees(project: Path) -> set[str]:
    """The worktrees that git knows of; other tests restore states of the same project."""
    return {
        line for line in git(project, "worktree", "list", "--porcelain").splitlines() if line.startswith("worktree ")
    }


def test_every_byte_is_made_again(run: Path) -> None:
    """By a real ``dvc repro`` of the state's own code, which unpickles nothing; no file of the project is touched."""
    before = worktrees(run)
    done = chronomerge(run, "verify", "1", "--json", PYTHONPATH=NO_PICKLES)
    found = json.loads(done.stdout)[0]
    assert found["same"]
    assert [node["node"] for node in found["nodes"]] == [
        "prepare", "prepare-evaluation", "initialize", "train", "measure", "deploy", "evaluate"
    ]  # fmt: skip
    assert "verify state/tiny/0001 7/7" in done.stderr
    assert git(run, "status", "--porcelain") == ""
    assert worktrees(run) <= before


def test_a_flipped_byte_is_found_by_reading_what_is_stored(copy: Path) -> None:
    assert chronomerge(copy, "verify", "--all", "--quick").returncode == 0
    cache = Cache(dvc_config.cache_dir(copy))
    stored = cache.path(timelines.find(copy, "tiny", 2).entries[layout.EXPERT].md5)
    good = stored.read_bytes()
    stored.chmod(0o644)
    stored.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    done = chronomerge(copy, "verify", "2", "--quick", check=False)
    stored.write_bytes(good)
    assert done.returncode == 1
    assert f"damaged: {layout.EXPERT} of state/tiny/0002" in done.stdout


def test_which_states_are_meant(copy: Path) -> None:
    assert [state.tag for state in verification.chosen(copy, "tiny", "2", every=False)] == ["state/tiny/0002"]
    assert len(verification.chosen(copy, "tiny", None, every=True)) == 3
    with pytest.raises(UserError, match="say which state"):
        verification.chosen(copy, "tiny", None, every=False)
    with pytest.raises(UserError, match="'nothing' has no states yet"):
        verification.chosen(copy, "nothing", None, every=True)


def test_a_history_that_does_not_follow_is_named(run: Path, tmp_path: Path) -> None:
    cache = Cache(dvc_config.cache_dir(run))
    two = timelines.find(run, "tiny", 2)
    assert verification.unlike_history(two, cache, tmp_path) == ()
    one = timelines.find(run, "tiny", 1)
    two.entries[layout.HISTORY] = one.entries[layout.HISTORY]
    named = verification.unlike_history(two, cache, tmp_path)
    assert "weights/expert.safetensors" in named
    assert "pools/pools.json" in named
    assert "model/model.json" not in named


def test_a_rollback_while_somebody_writes_is_refused(copy: Path) -> None:
    before = git(copy, "for-each-ref")
    with locks.writing(copy, "tiny"), pytest.raises(UserError, match="is being written by process"):
        rollbacks.rollback(copy, "elsewhere", "state/tiny/0001", wait=False)
    assert git(copy, "for-each-ref") == before


def test_back_to_one_and_on_with_another_arrival_and_back_to_what_was(copy: Path, prefect_api: dict[str, str]) -> None:
    """A bad arrival is taken back, another one follows; then the first one all the same: its bytes are known."""
    done = chronomerge(copy, "rollback", "1")
    assert "state/tiny/0001.2 is state/tiny/0001 again, and step 2 starts from it" in done.stdout
    assert "params.yaml still has second: take out what the next run is not to bring back" in done.stdout
    assert chronomerge(copy, "rollback", "1").stdout.startswith("nothing to do")
    other = {"name": "other", "update": ["images:drawings/base#train"]}
    projects.write_params(copy, stream=[projects.PARAMS["stream"][0], other])
    chronomerge(copy, "run", **prefect_api)
    one, two = timelines.find(copy, "tiny", "1.1"), timelines.find(copy, "tiny", "2")
    assert (two.tag, two.manifest.previous, two.manifest.arrival) == (
        "state/tiny/0002.2",
        "state/tiny/0001.2",
        "other",
    )
    assert two.entries[layout.HISTORY] == timelines.find(copy, "tiny", "2.1").entries[layout.HISTORY]
    run, left = verification.worth_running(timelines.states(copy, "tiny"))
    assert [state.name for state in run] == ["0", "1", "2", "2.2"]
    assert left == {"state/tiny/0001.2": "it is state/tiny/0001 once more"}
    retention.note(copy, [one])
    run, left = verification.worth_running(timelines.states(copy, "tiny"))
    assert [state.name for state in run] == ["0", "2", "1.2", "2.2"]
    assert "let go" in left["state/tiny/0001"]
    assert [state.tag for state, _ in verification.needs(timelines.find(copy, "tiny", "2.1"))] == ["state/tiny/0002"]
    git(copy, "update-ref", "-d", retention.NOTES)

    assert rollbacks.rollback(copy, "tiny", "1.1", wait=False)[1] is not None
    projects.write_params(copy)
    again = chronomerge(copy, "run", **prefect_api)
    assert "recorded state/tiny/0002.3" in again.stdout
    assert "train" not in again.stderr
    assert timelines.find(copy, "tiny", "2").entries == timelines.find(copy, "tiny", "2.1").entries

    rows = json.loads(chronomerge(copy, "states", "--json").stdout)
    assert [row["tag"] for row in rows] == ["state/tiny/0000", "state/tiny/0001.3", "state/tiny/0002.3"]
    every = tables.states_rows(copy, "tiny", all_lines=True)
    assert [(row["name"], row["current"]) for row in every] == [
        ("0", True), ("1", False), ("2", False), ("1.2", False), ("2.2", False), ("1.3", True), ("2.3", True),
    ]  # fmt: skip
    assert every[3]["bytes"]["new"] == every[5]["bytes"]["new"] == 0
    text = shown(tables.states_table(copy, "tiny"))
    assert "line 3: rolled back from state/tiny/0002.2 to state/tiny/0001" in text
    assert "4 more states (--all)" in text


def shown(renderable: object) -> str:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def test_the_table_fits_a_terminal(run: Path) -> None:
    lines = shown(tables.states_table(run, "tiny")).splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if "second" in line)
    manifest = timelines.find(run, "tiny", 2).manifest
    assert manifest.code.commit[:7] in row
    assert manifest.inputs[layout.RAW_ARRIVAL].md5[:7] in row
    assert "72" in row  # samples


def test_what_changed_between_two_states(run: Path) -> None:
    found = comparison.row(difference.compare(timelines.find(run, "tiny", 0), timelines.find(run, "tiny", 2)))
    assert found["params"] == {}
    assert found["code"]["files"] == []
    assert found["machine"] == {}
    assert "data/raw/evaluation" not in found["data"]
    assert found["data"]["data/raw/arrival"]["old"]["md5"] != found["data"]["data/raw/arrival"]["new"]["md5"]
    metrics = timelines.find(run, "tiny", 2).metrics
    assert found["metrics"]["A_KA"]["new"] == metrics["A_KA"]
    assert set(found["metrics"]) >= set(metrics["top1"])
    done = chronomerge(run, "states", "--diff", "0", "2")
    assert "params: the same" in done.stdout
    assert "data/step/expert.safetensors" in done.stdout


def test_changed_params_and_code_are_listed(copy: Path) -> None:
    """Two timelines compared; the code differs by a file that was never committed."""
    old = timelines.find(copy, "tiny", "0")
    params = git(copy, "show", f"{old.commit}:params.yaml").replace("lr: 0.0005", "lr: 0.01")
    env = {"GIT_INDEX_FILE": str(copy / "index")}
    plumbing(copy, "read-tree", old.commit, env=env)
    for path, text in {"params.yaml": params, "tasks/new.py": "1\n2\n"}.items():
        blob = plumbing(copy, "hash-object", "-w", "--stdin", stdin=text)
        plumbing(copy, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", env=env)
    tree = plumbing(copy, "write-tree", env=env)
    new = commits.make(copy, "other", 0, 1, tree, [old.commit], "other", None)
    found = difference.compare(old, new)
    assert found.params == {"train.lr": (0.0005, 0.01)}
    assert [(file.path, file.added, file.removed) for file in found.files] == [("tasks/new.py", 2, 0)]
    assert found.data == {}
    assert "train.lr  0.0005" in shown(comparison.table(found))


def test_sets_without_classes_are_shown_by_their_recall(copy: Path) -> None:
    old = timelines.find(copy, "tiny", "0")
    ways = {way: {"1": 10.0, "5": 30.0, "10": 50.0} for way in ("image_to_text", "text_to_image")}
    metrics = {**old.metrics, "top1": {"first": 5.0}, "recall": {"base": ways}}
    env = {"GIT_INDEX_FILE": str(copy / "index")}
    plumbing(copy, "read-tree", old.commit, env=env)
    blob = plumbing(copy, "hash-object", "-w", "--stdin", stdin=json.dumps(metrics))
    plumbing(copy, "update-index", "--add", "--cacheinfo", f"100644,{blob},metrics.json", env=env)
    new = commits.make(copy, "pairs", 0, 1, plumbing(copy, "write-tree", env=env), [old.commit], "pairs", None)
    assert new.unreadable() == {}
    found = difference.compare(old, new)
    assert found.metrics["first"] == (old.metrics["top1"]["first"], 5.0)
    assert found.metrics["base"] == (old.metrics["top1"]["base"], None)
    assert found.metrics["base text_to_image@5"] == (None, 30.0)
    assert "base image_to_text@10" in shown(comparison.table(found))
    row, before = (tables.states_rows(copy, name)[0] for name in ("pairs", "tiny"))
    assert (row["top1"], row["recall"], before["recall"]) == ({"first": 5.0}, {"base": ways}, {})
    assert "pairs" in shown(tables.states_table(copy, "pairs"))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second file system")
def test_on_another_file_system_files_are_copies(run: Path) -> None:
    there = Path("/dev/shm") / f"chronomerge-test-{os.getpid()}"
    try:
        restored = restoration.restore(run, "tiny", "1", there)
        weights = there / layout.EXPERT
        assert not weights.is_symlink()
        assert weights.stat().st_nlink == 1
        assert restored.fetched == 0
        assert git(there, "status", "--porcelain") == ""
    finally:
        shutil.rmtree(there, ignore_errors=True)
        git(run, "worktree", "prune")


def test_a_restore_that_was_killed_leaves_nothing_in_the_way(run: Path, tmp_path: Path) -> None:
    before = worktrees(run)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    part = tmp_path / f".state.part-{dead.stdout.strip()}"
    git(run, "worktree", "add", "--quiet", "--detach", str(part), "state/tiny/0001")
    (tmp_path / "state").mkdir()
    restoration.restore(run, "tiny", "1", tmp_path / "state")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert git(tmp_path / "state", "status", "--porcelain") == ""
    assert (tmp_path / "state" / layout.DEPLOYED).exists()
    git(run, "worktree", "remove", "--force", str(tmp_path / "state"))
    assert worktrees(run) <= before


def test_where_a_state_may_not_go(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    git(run, "worktree", "add", "--quiet", "--detach", str(mine), "main")
    try:
        (mine / "params.yaml").write_text("edited")
        for folder, reason in (
            (mine, "is not empty"), (run, "is not empty"),
            (run / ".chronomerge" / "x", "is not for you"), (run / ".git" / "x", "is not for you"),
        ):  # fmt: skip
            with pytest.raises(UserError, match=reason):
                restoration.restore(run, "tiny", "1", folder)
        assert (mine / "params.yaml").read_text() == "edited"
    finally:
        git(run, "worktree", "remove", "--force", str(mine))
