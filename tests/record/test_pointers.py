"""Pointers of other names: moved by gates and by hand, alone and shared; rollbacks and pruning respect them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.params import parse
from tasks.record import delivery, heads, names, pointers, promotion, retention, sharing, timelines, worktrees
from tasks.record.checks import records
from tasks.record.diagnosis import Visit
from tasks.record.rollbacks import go_back
from tasks.storage.git import git
from tests.project import PARAMS
from tests.record.test_promotion import grow, other, pointer  # noqa: F401
from tests.record.toy import record


def step(project: Path, *moved: str, remote: str | None = None) -> None:
    """The next state of timeline ``x``; the gates of ``moved`` have passed, that of champion has been asked."""
    newest = timelines.last(project, "x")
    asked = dict.fromkeys(("champion", *moved), False) | dict.fromkeys(moved, True)
    record(project, newest.step + 1 if newest else 0, newest, remote, pointers=asked)


def move(project: Path, name: str, state: str, shared: str | None = None, *, placed: bool = True) -> bool:
    found = timelines.find(project, "x", state)
    return promotion.point(found, name, placed=placed, reason="why", shared=shared)


def at(project: Path) -> dict[str, str]:
    """Pointer → the name of its state; where they are follows from states and decisions alone."""
    found = pointers.all_of(project, "x")
    recorded, lineage = timelines.states(project, "x"), timelines.lineage(project, "x")
    here = heads.local(project, "x")
    assert pointers.places(project, recorded, lineage, here.decisions) == here.named
    return {name: state.name for name, state in found.items()}


def test_gates_and_people_move_pointers_and_the_last_of_them_counts(project: Path) -> None:
    step(project)
    assert at(project) == {}
    step(project, "champion")
    step(project, "candidate")
    assert at(project) == {"champion": "1", "candidate": "2"}
    assert move(project, "champion", "0")
    assert not move(project, "champion", "0")
    step(project)
    assert at(project) == {"champion": "0", "candidate": "2"}
    step(project, "champion")
    assert at(project)["champion"] == "4"
    assert move(project, "champion", "2")
    assert move(project, "champion", "2", placed=False)
    assert at(project)["champion"] == "4"
    assert move(project, "champion", "4", placed=False)
    assert at(project)["champion"] == "0"
    assert pointer(project) == "4"  # the deployed one takes no notice
    assert git(project, "log", "--format=%s", names.decisions("x")).splitlines()[-1] == "champion to state/x/0000"
    assert git(project, "rev-parse", "pointer/x/champion") == timelines.find(project, "x", 0).commit


def test_decisions_of_both_kinds_keep_each_other(project: Path) -> None:
    grow(project, "ppp")
    move(project, "champion", "1")
    promotion.decide_on(timelines.find(project, "x", 2), promoted=False, reason=None, shared=None)
    move(project, "mine", "0")
    assert (at(project), pointer(project)) == ({"champion": "1", "mine": "0"}, "1")
    assert not promotion.decide_on(timelines.find(project, "x", 2), promoted=False, reason=None, shared=None)


def test_a_pointer_that_was_at_one_state_alone_goes_away(project: Path) -> None:
    grow(project, "pp")
    move(project, "mine", "1")
    with pytest.raises(UserError, match="mine is at state/x/0001, not at state/x/0000; nothing changed"):
        move(project, "mine", "0", placed=False)
    move(project, "mine", "1", placed=False)
    assert at(project) == {}
    with pytest.raises(UserError, match=r"no pointer 'mine' in this clone \(there are: none\)"):
        delivery.pointed(project, "x", "mine")


@pytest.mark.parametrize(("name", "why"), [
    ("deployed", "deployed is moved by gate, promote, hold and rollback"), ("a/b", "use letters, digits"),
    ("a..b", "git allows no"), ("--x", "use letters, digits"), ("x.lock", "git allows no"),
])  # fmt: skip
def test_names_that_no_pointer_can_have(project: Path, name: str, why: str) -> None:
    grow(project, "p")
    before = git(project, "for-each-ref")
    with pytest.raises(UserError, match=f"cannot be the name of a pointer: {why}"):
        move(project, name, "0")
    assert git(project, "for-each-ref") == before


def test_a_rollback_takes_back_what_gates_said_and_leaves_what_people_said(project: Path) -> None:
    step(project, "champion")
    step(project, "champion")
    step(project)
    step(project, "champion")
    move(project, "mine", "3")
    go_back(project, timelines.find(project, "x", 1), None)
    assert at(project) == {"champion": "1.2", "mine": "3"}
    step(project, "mine")
    assert at(project) == {"champion": "1.2", "mine": "2.2"}
    assert move(project, "champion", "3.1")  # also one that was left behind
    go_back(project, timelines.find(project, "x", "0"), None)
    assert at(project) == {"champion": "3", "mine": "3"}


def test_states_with_pointers_keep_their_weights(project: Path) -> None:
    zero, one, *_ = grow(project, "pppp")
    move(project, "champion", "1")
    move(project, "mine", "1")
    going, staying = retention.choose(project, 1, ())
    assert [state.name for state in going] == ["0", "2"]
    assert staying == ["state/x/0001 stays: a pointer is there (champion, mine)"]
    retention.note(project, [zero])
    with pytest.raises(UserError, match="champion would be at state/x/0000, whose weights were let go"):
        move(project, "champion", "0")
    assert at(project)["champion"] == one.name


def test_machines_agree_on_pointers(project: Path, shared: Path, other: Path) -> None:  # noqa: F811
    move(other, "champion", "1", "origin")
    assert git(shared, "rev-parse", "pointer/x/champion") == timelines.find(other, "x", 1).commit
    with pytest.raises(UserError, match="if another machine was first"):
        move(project, "champion", "0", "origin")
    sharing.synchronize(project, "x", "origin")
    assert at(project) == {"champion": "1"}
    step(project, "champion", remote="origin")
    move(project, "mine", "0", "origin")
    sharing.follow(other, "x", "origin")
    assert {name: state.name for name, state in pointers.all_of(other, "x").items()} == {"champion": "3", "mine": "0"}
    move(project, "mine", "0", "origin", placed=False)
    sharing.follow(other, "x", "origin")
    sharing.synchronize(other, "x", "origin")
    assert heads.local(other, "x") == heads.local(shared, "x") == heads.local(project, "x")
    assert at(other) == {"champion": "3"}


def test_a_transaction_that_fails_moves_no_pointer(project: Path) -> None:
    grow(project, "pp")
    move(project, "champion", "0")
    before = git(project, "for-each-ref")
    lock = project / ".git" / f"{names.named_pointers('x')}champion.lock"
    lock.touch()
    with pytest.raises(UserError, match=r"git cannot keep that decision.*\.lock"):
        move(project, "champion", "1")
    with pytest.raises(UserError, match=r"git cannot record state/x/0002.*\.lock"):
        step(project, "champion")
    assert git(project, "for-each-ref") == before
    worktrees.clean_up(project, "x")  # a git that was killed left the lock
    step(project, "champion")
    assert at(project) == {"champion": "2"}


def test_a_pointer_at_no_state_is_found_and_put_back(project: Path) -> None:
    grow(project, "pp")
    move(project, "champion", "0")
    with Visit(project, "embedded", lambda *_: None) as visit:
        git(project, "tag", "--force", "pointer/x/champion", "HEAD")
        git(project, "tag", "pointer/x/strange", "HEAD")
        with pytest.raises(UserError, match=r"tag pointer/x/champion is at .* doctor --repair"):
            pointers.all_of(project, "x")
        one, two = records.pointers(visit)
        assert "pointer/x/champion" in one.what
        assert "pointer/x/strange" in two.what
        assert one.repair
        one.repair()
        assert list(records.pointers(visit)) == []
    assert at(project) == {"champion": "0"}


def test_params_name_pointers_and_their_gates(tmp_path: Path) -> None:
    def read(**pointers: object) -> object:
        return parse(json.dumps({**PARAMS, "pointers": pointers}), tmp_path / "params.yaml")

    read(candidate={}, champion={"require": ["geometric_mean_gain >= 0", "score.base >= 20%"]})
    for given, why in (
        ({"deployed": {}}, "deployed is moved by gate"),
        ({"a b": {}}, "pointers.a b"),
        ({"champion": {"require": ["A_KA"]}}, "a condition is NAME OP NUMBER"),
        ({"champion": {"require": ["score.cars >= 1%"]}}, "no evaluation set is called cars"),
        ({"champion": {"held": "skip"}}, "unknown key pointers.champion.held"),
    ):
        with pytest.raises(UserError, match=why):
            read(**given)  # type: ignore[arg-type]
