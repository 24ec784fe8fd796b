"""The pointer and what moves it: the gate's verdict, people's decisions, rollbacks; in real git, alone and shared."""

from dataclasses import asdict
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.params import Gate
from tasks.progress import silent
from tasks.record import decisions, heads, names, promotion, retention, sharing, timelines, worktrees
from tasks.record.checks import records
from tasks.record.diagnosis import Visit
from tasks.record.rollbacks import go_back
from tasks.record.state import State
from tasks.storage.git import GitError, git
from tests.record.toy import record

SKIP = Gate(held="skip")


def grow(project: Path, kinds: str, remote: str | None = None) -> list[State]:
    """The next states of timeline ``x``: ``p`` promoted, ``h`` held by the gate."""
    found = []
    for kind in kinds:
        newest = timelines.last(project, "x")
        step = newest.step + 1 if newest else 0
        found.append(record(project, step, newest, remote, promoted=kind == "p"))
    return found


def pointer(project: Path) -> str:
    """The state that the tag ``deployed/x`` is at."""
    at = git(project, "rev-parse", "--verify", "--quiet", "refs/tags/deployed/x")
    (found,) = [state for state in timelines.states(project, "x") if state.commit == at]
    assert found == timelines.deployed(project, "x")
    return found.name


def decide(project: Path, name: str, promoted: bool, shared: str | None = None, reason: str | None = None) -> str:
    """Decide on a state; returns the one deployed then, or ``nothing``."""
    state = timelines.find(project, "x", name)
    found = promotion.decide_on(state, promoted=promoted, reason=reason, shared=shared)
    return found.name if found else "nothing"


def start(project: Path, settings: Gate | None = SKIP) -> str:
    found = promotion.next_start(project, "x", settings)
    assert found
    return found.name


def test_the_pointer_goes_with_what_is_promoted(project: Path) -> None:
    grow(project, "p")
    assert pointer(project) == "0"
    grow(project, "phh")
    assert pointer(project) == "1"
    assert git(project, "rev-parse", names.branch("x")) == timelines.find(project, "x", 3).commit
    grow(project, "p")
    assert pointer(project) == "4"


def test_where_the_next_step_starts(project: Path) -> None:
    assert promotion.next_start(project, "x", SKIP) is None
    grow(project, "pphh")
    assert [start(project, settings) for settings in (None, Gate(), SKIP)] == ["3", "3", "1"]
    decide(project, "2", True)
    assert start(project) == "2"
    decide(project, "2", False)
    decide(project, "1", False)
    assert start(project) == "0"
    grow(project, "p")
    assert start(project) == "4"


def test_a_base_that_is_held_is_started_from_all_the_same(project: Path) -> None:
    grow(project, "hh")
    assert timelines.deployed(project, "x") is None
    assert heads.local(project, "x").pointer is None
    assert start(project) == "0"
    assert decide(project, "1", True) == pointer(project) == start(project) == "1"


def test_decisions_by_hand_last_and_say_whose_they_are(project: Path) -> None:
    grow(project, "pph")
    assert decide(project, "2", True, reason="the new style\nis wanted") == pointer(project) == "2"
    assert decide(project, "2", True) == "nothing"
    assert decide(project, "1", False) == pointer(project) == "2"  # the newest counts
    assert decide(project, "2", False) == pointer(project) == "0"
    with pytest.raises(UserError, match="state/x/0000 is the only promoted state"):
        decide(project, "0", False)
    grow(project, "hp")
    assert pointer(project) == "4"
    assert decide(project, "4", False) == pointer(project) == "0"
    said = decisions.read(project, heads.local(project, "x").decisions)
    assert [(one.state[-1], one.promoted) for one in said] == [("2", True), ("1", False), ("2", False), ("4", False)]
    assert asdict(said[0]) | {"at": "", "host": ""} == {
        "state": "state/x/0002", "promoted": True, "who": "Tester <tester@localhost>", "host": "", "at": "",
        "reason": "the new style\nis wanted",
    }  # fmt: skip
    assert git(project, "log", "--format=%s", "refs/decisions/x").splitlines()[-1] == "promote state/x/0002"


def test_a_rollback_is_promoted_and_leaves_decisions_behind(project: Path) -> None:
    grow(project, "phpp")
    go_back(project, timelines.find(project, "x", 1), None)
    assert pointer(project) == "1.2"
    with pytest.raises(UserError, match=r"left behind by a rollback; `chronomerge rollback 3\.1` goes back to it"):
        decide(project, "3.1", False)
    assert decide(project, "1", False) == pointer(project) == start(project) == "0"
    assert timelines.find(project, "x", "1.1").manifest.gate


def test_a_transaction_that_fails_moves_nothing(project: Path) -> None:
    """Git is stopped by a lock at each ref in turn, as another git would hold it, or one that was killed."""
    grow(project, "pp")
    decide(project, "1", False)
    before = git(project, "for-each-ref")
    locks = [project / ".git" / f"{ref('x')}.lock" for ref in (names.branch, names.pointer, names.decisions)]
    for lock in locks:
        lock.touch()
        with pytest.raises(UserError, match=r"git cannot record state/x/0002.*\.lock"):
            grow(project, "p")
        with pytest.raises(UserError, match=r"git cannot keep that decision.*\.lock"):
            decide(project, "1", True)
        assert git(project, "for-each-ref") == before
        lock.unlink()
    for lock in locks:
        lock.touch()
    worktrees.clean_up(project, "x")
    grow(project, "p")
    assert pointer(project) == "2"


def test_of_a_step_and_a_decision_at_once_one_is_first(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has looked at all three refs before the other moved one."""
    grow(project, "pp")
    move = heads.move

    def meanwhile(*args: object, **kwargs: object) -> None:
        monkeypatch.setattr(heads, "move", move)
        decide(project, "1", False)
        move(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(heads, "move", meanwhile)
    with pytest.raises(UserError, match="run again"):
        grow(project, "h")
    assert (pointer(project), len(timelines.states(project, "x"))) == ("0", 2)

    def recorded(*args: object, **kwargs: object) -> None:
        monkeypatch.setattr(heads, "move", move)
        grow(project, "h")
        move(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(heads, "move", recorded)
    with pytest.raises(UserError, match="decide again"):
        decide(project, "1", True)
    assert (pointer(project), len(timelines.states(project, "x"))) == ("0", 3)


@pytest.fixture
def other(tmp_path: Path, project: Path, shared: Path) -> Path:
    """A second machine, which has the states 0 to 2 of the first; 2 is held."""
    grow(project, "pph", "origin")
    git(tmp_path, "clone", "--quiet", "--branch", "main", str(shared), "other")
    sharing.synchronize(tmp_path / "other", "x", "origin")
    return tmp_path / "other"


def test_machines_agree_on_the_pointer(project: Path, shared: Path, other: Path) -> None:
    assert pointer(other) == pointer(shared) == "1"
    decide(other, "1", False, "origin")
    assert pointer(shared) == "0"
    before = git(project, "for-each-ref")
    with pytest.raises(UserError, match="if another machine was first"):
        decide(project, "2", True, "origin")  # it has not seen the other's word
    with pytest.raises(UserError, match="if another machine was first"):
        grow(project, "p", "origin")
    assert git(project, "for-each-ref") == before
    sharing.synchronize(project, "x", "origin")
    assert (pointer(project), start(project)) == ("0", "0")
    decide(project, "2", True, "origin")
    grow(project, "h", "origin")
    sharing.synchronize(other, "x", "origin")
    assert heads.local(other, "x") == heads.local(shared, "x") == heads.local(project, "x")
    assert (pointer(other), len(decisions.read(other, heads.local(other, "x").decisions))) == ("2", 2)


def test_a_crash_between_push_and_transaction_is_mended(
    project: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(project, "pph", "origin")
    before = heads.local(project, "x")
    with monkeypatch.context() as patch:
        patch.setattr(heads, "move", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            decide(project, "2", True, "origin")
    assert heads.local(project, "x") == before
    assert pointer(shared) == "2"
    sharing.synchronize(project, "x", "origin")
    assert heads.local(project, "x") == heads.local(shared, "x")
    assert pointer(project) == "2"


def test_decisions_that_went_two_ways_are_refused(project: Path, other: Path) -> None:
    decide(project, "2", True)
    decide(other, "1", False, "origin")
    with pytest.raises(UserError, match="different states in this clone and on git remote"):
        sharing.synchronize(project, "x", "origin")


def test_states_of_before_there_was_a_pointer(project: Path, shared: Path) -> None:
    grow(project, "phhp", "origin")
    for repository in (project, shared):
        git(repository, "update-ref", "-d", names.pointer("x"))
    newest = timelines.deployed(project, "x")
    assert newest
    assert newest.step == 3
    sharing.synchronize(project, "x", "origin")
    assert pointer(project) == pointer(shared) == "3"


def test_one_who_only_reads_follows_the_pointer(project: Path, other: Path) -> None:
    grow(project, "p", "origin")
    decide(project, "3", False, "origin")
    git(other, "update-ref", "-d", names.branch("x"))
    sharing.follow(other, "x", "origin")
    assert (pointer(other), heads.local(other, "x").branch) == ("1", None)
    assert len(timelines.states(other, "x")) == 4
    git(other, "remote", "set-url", "origin", "nowhere")
    with pytest.raises(UserError, match="cannot ask git remote 'origin' which state is deployed"):
        sharing.follow(other, "x", "origin")


def test_a_pointer_at_no_state_is_found_and_put_back(project: Path) -> None:
    grow(project, "pph")
    with Visit(project, "embedded", silent) as visit:
        assert list(records.pointers(visit)) == []
        git(project, "update-ref", names.pointer("x"), "HEAD")
        with pytest.raises(UserError, match=r"tag deployed/x is at .* doctor --repair"):
            timelines.deployed(project, "x")
        (finding,) = records.pointers(visit)
        assert finding.repair
        finding.repair()
    assert pointer(project) == "1"


def test_the_deployed_state_keeps_its_weights(project: Path) -> None:
    zero, one, *_ = grow(project, "pphh")
    going, staying = retention.choose(project, 1, ())
    assert [state.name for state in going] == ["0", "2"]
    assert staying == ["state/x/0001 stays: it is deployed"]
    retention.note(project, [zero])
    with pytest.raises(UserError, match="state/x/0000 would be deployed, but its weights were let go"):
        promotion.decide_on(one, promoted=False, reason=None, shared=None)


def test_git_without_a_name_for_the_user(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(project, "ph")
    for name, value in {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_COUNT": "1", "LOGNAME": "ada",
                        "GIT_CONFIG_KEY_0": "user.useConfigOnly", "GIT_CONFIG_VALUE_0": "true"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(GitError):
        git(project, "var", "GIT_AUTHOR_IDENT")
    assert decide(project, "1", True) == "1"
    assert decisions.read(project, heads.local(project, "x").decisions)[0].who == "ada"
