"""Locks are the kernel's: they go with their holders, and the kinds exclude each other as they should."""

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.storage import locks

HOLD = """
import sys, time
from tasks.storage import locks
with open(sys.argv[1], "a") as file:
    locks.acquire(file, shared=sys.argv[2] == "shared")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["exclusive", "shared"])
def test_a_killed_holder_holds_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path), kind], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    assert locks.is_held(path, shared=True)
    assert locks.is_held(path) == (kind == "exclusive")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert not locks.is_held(path, shared=True)
    with locks.exclusive(path):
        assert locks.is_held(path)


def test_users_of_a_repository_keep_a_deletion_out_and_it_them(project: Path) -> None:
    with locks.using(project), locks.writing(project, "x"):
        with pytest.raises(UserError, match=r"in use \(timeline 'x' by process \d+"), locks.alone(project):
            pass
        with pytest.raises(UserError, match="timeline 'x' is being written by process"), locks.writing(project, "x"):
            pass
    with locks.alone(project):
        for user in (locks.using(project), locks.writing(project, "y")):
            with pytest.raises(UserError, match="`chronomerge gc` is deleting objects"), user:
                pass
    assert locks.timelines(project) == ["x"]
    assert locks.holder(project, "x") is None
