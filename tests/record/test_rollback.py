"""Going back: a new line from an earlier state; tags stay where they are, and other machines can follow."""

import json
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.record import names, sharing, timelines
from tasks.record.manifest import StateBytes
from tasks.record.rollbacks import go_back, is_newest
from tasks.record.state import State
from tasks.storage.git import git
from tests.record.toy import record


def grow(project: Path, first: int, last: int, remote: str | None = None) -> State:
    """States ``first`` to ``last`` after the newest."""
    state = timelines.last(project, "x")
    for step in range(first, last + 1):
        state = record(project, step, state, remote)
    assert state
    return state


def tags(found: list[State]) -> list[str]:
    return [state.tag.removeprefix("state/x/") for state in found]


def test_the_next_step_goes_on_from_there_and_both_lines_stay(project: Path) -> None:
    five = grow(project, 0, 5)
    two = timelines.find(project, "x", 2)
    back = go_back(project, two, None)
    assert back == timelines.last(project, "x")
    assert (back.tag, back.step, back.line, back.name) == ("state/x/0002.2", 2, 2, "2.2")
    three = grow(project, 3, 3)
    assert three.tag == "state/x/0003.2"
    assert tags(timelines.states(project, "x")) == ["0000", "0001", "0002", "0003", "0004", "0005", "0002.2", "0003.2"]
    assert tags(timelines.lineage(project, "x")) == ["0000", "0001", "0002.2", "0003.2"]
    assert git(project, "rev-parse", "state/x/0005", "state/x/0002").split() == [five.commit, two.commit]
    assert git(project, "rev-parse", names.branch("x")) == three.commit


def test_a_rollback_is_the_same_tree_with_another_manifest(project: Path) -> None:
    five = grow(project, 0, 5)
    two = timelines.find(project, "x", 2)
    back = go_back(project, two, None)
    assert git(project, "diff", "--name-only", two.commit, back.commit) == "manifest.json"
    assert git(project, "rev-list", "--parents", "-1", back.tag).split()[1:] == [five.commit, two.commit]
    noted = back.manifest.rollback
    assert noted is not None
    assert (noted.left, noted.to) == ("state/x/0005", "state/x/0002")
    assert back.manifest == two.manifest.model_copy(
        update={"line": 2, "bytes": StateBytes(total=7, new=0), "rollback": noted, "gate": None}
    )
    assert git(project, "status", "--porcelain") == ""


def test_names_of_states(project: Path) -> None:
    grow(project, 0, 3)
    go_back(project, timelines.find(project, "x", "1"), None)
    grow(project, 2, 2)
    named = {
        name: timelines.find(project, "x", name).tag
        for name in ("0", "1", "2", "1.1", "2.1", "3.1", "2.2", "state/x/0003")
    }
    assert named == {
        "0": "state/x/0000", "1": "state/x/0001.2", "2": "state/x/0002.2", "1.1": "state/x/0001", "2.1": "state/x/0002",
        "3.1": "state/x/0003", "2.2": "state/x/0002.2", "state/x/0003": "state/x/0003",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"no state 3 \(recorded: 0 to 2, and 3\.1 on other lines\)"):
        timelines.find(project, "x", "3")
    with pytest.raises(UserError, match=r"no state 0\.2 .*0\.1 on other lines"):
        timelines.find(project, "x", "0.2")
    with pytest.raises(UserError, match="'newest' names no state"):
        timelines.find(project, "x", "newest")


def test_back_again_and_again(project: Path) -> None:
    """A rollback is undone by another one, to what it left behind."""
    grow(project, 0, 3)
    for target, line in (
        ("1", "0000 0001.2"),
        ("3.1", "0000 0001 0002 0003.3"),
        ("1.2", "0000 0001.4"),
        ("0", "0000.5"),
    ):
        go_back(project, timelines.find(project, "x", target), None)
        assert tags(timelines.lineage(project, "x")) == line.split()
    assert grow(project, 1, 1).tag == "state/x/0001.5"
    assert len(timelines.states(project, "x")) == 9


def test_where_one_is_already(project: Path) -> None:
    grow(project, 0, 3)
    assert is_newest(timelines.find(project, "x", "3"))
    assert not is_newest(timelines.find(project, "x", "1"))
    go_back(project, timelines.find(project, "x", "1"), None)
    assert is_newest(timelines.find(project, "x", "1.2"))
    assert is_newest(timelines.find(project, "x", "1.1"))
    assert not is_newest(timelines.find(project, "x", "3.1"))


def test_machines_follow_a_rollback(project: Path, shared: Path, tmp_path: Path) -> None:
    grow(project, 0, 2, "origin")
    git(tmp_path, "clone", "--quiet", "--branch", "main", str(shared), "other")
    other = tmp_path / "other"
    sharing.synchronize(other, "x", "origin")
    go_back(project, timelines.find(project, "x", 1), "origin")
    with pytest.raises(UserError, match="if another machine was first"):
        record(other, 3, timelines.last(other, "x"), "origin")
    sharing.synchronize(other, "x", "origin")
    newest = timelines.last(other, "x")
    assert newest is not None
    assert newest.tag == "state/x/0001.2"
    assert record(other, 2, newest, "origin").tag == "state/x/0002.2"
    sharing.synchronize(project, "x", "origin")
    assert tags(timelines.lineage(project, "x")) == ["0000", "0001.2", "0002.2"]


def test_what_a_crash_kept_from_the_remote_is_pushed_with_the_next(project: Path, shared: Path) -> None:
    grow(project, 0, 2)
    go_back(project, timelines.find(project, "x", 1), None)
    sharing.synchronize(project, "x", "origin")
    there = git(shared, "tag", "--list", "state/*").splitlines()
    assert there == ["state/x/0000", "state/x/0001", "state/x/0001.2", "state/x/0002"]


def test_a_step_that_went_on_from_what_was_left_behind_is_refused(project: Path) -> None:
    two = grow(project, 0, 2)
    go_back(project, timelines.find(project, "x", 1), None)
    before = git(project, "for-each-ref")
    with pytest.raises(UserError, match="somebody else recorded in timeline 'x' meanwhile"):
        record(project, 3, two)
    assert git(project, "for-each-ref") == before


def test_tags_of_a_user_beside_ours_are_let_be(project: Path) -> None:
    grow(project, 0, 1)
    for name in ("state/x/best", "state/x/0001.1", "state/x/0001-old", "state/x/1"):
        git(project, "tag", name)
    assert tags(timelines.states(project, "x")) == ["0000", "0001"]
    assert json.loads(git(project, "show", "state/x/0001:manifest.json"))["step"] == 1
