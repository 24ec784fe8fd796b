"""States in git: one transaction, one winner, and the same for several machines that share a remote."""

import subprocess
from pathlib import Path

import pytest

from tasks import nodes
from tasks.errors import UserError
from tasks.record import project_code, sharing, timelines, worktrees
from tasks.record.state import State
from tasks.storage import locks
from tasks.storage.dvc_config import Remote
from tasks.storage.git import git, top_level
from tests.record import made_up
from tests.record.toy import record


def test_branch_and_tags_grow_together(project: Path) -> None:
    assert timelines.last(project, "x") is None
    zero = record(project, 0, None)
    one = record(project, 1, zero)
    assert timelines.last(project, "x") == one
    assert [s.tag for s in timelines.states(project, "x")] == ["state/x/0000", "state/x/0001"]
    assert timelines.timeline_names(project) == ["x"]
    with pytest.raises(UserError, match=r"has no state 7 \(recorded: 0 to 1\)"):
        timelines.find(project, "x", 7)


def test_of_two_writers_of_one_step_one_wins(project: Path) -> None:
    zero = record(project, 0, None)
    record(project, 1, zero, note="first")
    before = git(project, "for-each-ref")
    with pytest.raises(UserError, match="somebody else"):
        record(project, 1, zero, note="second")
    assert git(project, "for-each-ref") == before


def test_a_moved_branch_is_noticed(project: Path) -> None:
    record(project, 0, None)
    git(project, "update-ref", "refs/heads/states/x", "HEAD")
    with pytest.raises(UserError, match="newest state is state/x/0000"):
        timelines.last(project, "x")


def test_machines_that_share_a_remote_take_turns(project: Path, shared: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--branch", "main", str(shared), "other")
    other = tmp_path / "other"
    zero = record(project, 0, None, "origin")
    sharing.synchronize(other, "x", "origin")
    assert timelines.last(other, "x") == State(other, "x", 0, zero.commit)
    record(other, 1, timelines.last(other, "x"), "origin", note="theirs")
    with pytest.raises(UserError, match="if another machine was first"):
        record(project, 1, zero, "origin", note="ours")
    assert timelines.last(project, "x") == zero  # nothing half recorded
    sharing.synchronize(project, "x", "origin")
    newest = timelines.last(project, "x")
    assert newest is not None
    assert newest.step == 1
    assert "theirs" in git(project, "show", f"{newest.commit}:manifest.json")


def test_what_a_remote_lacks_is_pushed_again(project: Path, shared: Path) -> None:
    one = record(project, 1, record(project, 0, None))  # as after a crash before the push
    sharing.synchronize(project, "x", "origin")
    assert git(shared, "rev-parse", "refs/heads/states/x") == one.commit
    assert git(shared, "tag").splitlines() == ["deployed/x", "state/x/0000", "state/x/0001"]
    sharing.synchronize(project, "x", "origin")


def test_two_histories_are_refused(project: Path, shared: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--branch", "main", str(shared), "other")
    record(project, 0, None, note="ours")
    record(tmp_path / "other", 0, None, "origin", note="theirs")
    with pytest.raises(UserError, match=r"store\.git"):
        sharing.synchronize(project, "x", "origin")


def test_a_snapshot_has_what_is_not_committed_and_touches_nothing(project: Path) -> None:
    (project / "code.py").write_text("2\n")
    (project / "tasks").mkdir()
    (project / "tasks" / "new.py").write_text("3\n")
    (project / "unrelated.bin").write_text("4\n")
    before = git(project, "status", "--porcelain")
    code = project_code.code_of(project)
    assert code.dirty
    assert git(project, "show", f"{code.tree}:code.py") == "2"
    assert git(project, "show", f"{code.tree}:tasks/new.py") == "3"
    assert "unrelated.bin" not in git(project, "ls-tree", "--name-only", code.tree)
    assert git(project, "status", "--porcelain") == before


def test_what_a_node_has_not_finished_outlives_its_worktree(tmp_path: Path) -> None:
    remote = Remote("there", str(tmp_path / "remote"))
    folder = made_up.project(tmp_path / "project", remote)
    code, found = project_code.code_of(folder), []
    for _ in range(2):
        with worktrees.for_step(folder, code, remote, 0, None) as tree:
            half = nodes.unfinished(tree.folder, "train") / "half"
            found.append(half.exists())
            half.parent.mkdir(exist_ok=True)
            half.write_text("half done")
            assert git(tree.folder, "status", "--porcelain", "--untracked-files=all", "--", ".chronomerge") == ""
        assert not tree.folder.exists()
    assert found == [False, True]
    assert (folder / ".chronomerge/unfinished/x/train/half").exists()


def test_who_holds_a_timeline(project: Path) -> None:
    assert locks.holder(project, "x") is None
    with locks.writing(project, "x"):
        assert "process" in (locks.holder(project, "x") or "")
        with (
            pytest.raises(UserError, match="timeline 'x' is being written by process"),
            locks.writing(project, "x"),
        ):
            pass
        with locks.writing(project, "y"):
            pass
    assert locks.holder(project, "x") is None


def test_no_repository_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not in a git repository"):
        top_level(tmp_path)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    with pytest.raises(UserError, match="no commit yet"):
        top_level(tmp_path)


@pytest.mark.parametrize("place", ["detached HEAD", "worktree", "shallow clone"])
def test_states_are_recorded_from_any_checkout(project: Path, tmp_path: Path, place: str) -> None:
    git(project, "commit", "--quiet", "--allow-empty", "--message", "second")
    before, here = git(project, "rev-parse", "HEAD"), tmp_path / "here"
    match place:
        case "detached HEAD":
            git(project, "checkout", "--quiet", "--detach")
            here = project
        case "worktree":
            git(project, "worktree", "add", "--quiet", "--detach", str(here))
        case _:
            git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{project}", str(here))
    state = None
    for step in range(2):
        state = record(here, step, state)
    assert [one.tag for one in timelines.states(here, "x")] == ["state/x/0000", "state/x/0001"]
    assert git(here, "rev-parse", "HEAD") == before
    assert git(here, "status", "--porcelain") == ""
