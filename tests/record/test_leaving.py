"""The way back from ``git checkout state/…``: one command, and nothing of the state is left behind."""

from pathlib import Path

import pytest

from tasks import layout
from tasks.errors import UserError
from tasks.record.leaving import leave
from tasks.record.state import State
from tasks.storage.dvc import Dvc
from tasks.storage.dvc_config import Remote
from tasks.storage.git import git
from tests.record import made_up


@pytest.fixture
def checked_out(tmp_path: Path) -> State:
    """A state in the user's own folder, with its data; the branch before was ``work``."""
    remote = Remote("there", str(tmp_path / "remote"))
    project = made_up.project(tmp_path / "project", remote)
    git(project, "checkout", "--quiet", "-b", "work")
    with Dvc(project) as dvc:
        state = made_up.record(project, remote, dvc)
        git(project, "checkout", "--quiet", state.tag)
        dvc("checkout", project)
    assert (project / layout.EXPERT).exists()
    return state


def test_one_command_leads_back_and_takes_the_data_along(checked_out: State) -> None:
    project = checked_out.project
    left = leave(project)
    assert (left.state, left.branch) == (checked_out, "work")
    assert layout.EXPERT in left.removed
    assert git(project, "rev-parse", "--abbrev-ref", "HEAD") == "work"
    assert git(project, "status", "--porcelain", "--ignored", "--", "data") == ""
    assert not (project / "data").exists()
    with pytest.raises(UserError, match="no state is checked out"):
        leave(project)


def test_changed_data_stops_it_before_anything_is_done(checked_out: State) -> None:
    project = checked_out.project
    (project / layout.EXPERT).unlink()
    (project / layout.EXPERT).write_text("mine")
    with pytest.raises(UserError, match=rf"{layout.EXPERT} differs from that of state/x/0000; move it elsewhere"):
        leave(project)
    assert git(project, "rev-parse", "HEAD") == checked_out.commit
    assert (project / layout.DEPLOYED).exists()
    (project / layout.EXPERT).unlink()
    leave(project)


def test_a_branch_that_is_not_there_is_named_with_those_that_are(checked_out: State) -> None:
    with pytest.raises(UserError, match=r"chronomerge leave BRANCH \(there are: .*work\)"):
        leave(checked_out.project, "--force")
