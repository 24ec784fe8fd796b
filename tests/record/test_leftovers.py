"""What a kill at the worst moment leaves, and who clears it away."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tasks import layout
from tasks.record import names, worktrees
from tasks.storage import embedded
from tasks.storage.cache import Cache
from tasks.storage.git import git
from tests.waiting import until


@pytest.fixture
def project(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "code")
    return tmp_path


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_half_stored_files_of_dead_processes_go(tmp_path: Path, dead: int) -> None:
    cache = Cache(tmp_path)
    folder = cache.path("ab" + "c" * 30).parent
    folder.mkdir(parents=True)
    for pid in (dead, os.getpid()):
        (folder / f".part-{pid}-cd").write_bytes(b"half")
    trial = folder.parent / ".dvc-tries-links.tmp"
    trial.write_bytes(b"test")
    cache.drop_unfinished()
    assert [path.name for path in folder.iterdir()] == [f".part-{os.getpid()}-cd"]
    assert trial.exists()  # somebody may be at it
    os.utime(trial, (0, 0))
    cache.drop_unfinished()
    assert not trial.exists()


def test_locks_of_a_git_that_was_killed_go(project: Path) -> None:
    branch = project / ".git" / f"{names.branch('x')}.lock"
    tag = project / ".git" / f"{names.tag('x', 3)}.lock"
    other = project / ".git" / "refs" / "heads" / "mine.lock"
    for path in (branch, tag, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    worktrees.clean_up(project, "x")
    assert (branch.exists(), tag.exists(), other.exists()) == (False, False, True)


def test_a_worktree_that_git_had_only_begun_goes(project: Path, dead: int) -> None:
    notes = project / ".git" / "worktrees"
    dated = "2025-20251128123000"  # no process has such a number
    for name in (f"0003-{dead}", f"state-0002-{dead}", f"0003-{os.getpid()}", "mine", dated):
        (notes / name).mkdir(parents=True)
    (notes / ".directory").touch()  # as file managers leave them
    worktrees.clean_up(project, "x")
    worktrees.forget(project, project / "elsewhere")
    assert sorted(path.name for path in notes.iterdir()) == [".directory", f"0003-{os.getpid()}", dated, "mine"]


def test_gits_note_of_a_worktree_that_is_gone_goes(project: Path, dead: int) -> None:
    """We were killed between removing the folder and the note; a user's worktree may only be unmounted."""
    notes = project / ".git" / "worktrees"
    ours, theirs = layout.private(project) / "work" / "y", project / "elsewhere"
    for home, name in ((ours, f"0003-{dead}"), (ours, f"0004-{os.getpid()}"), (theirs, f"0005-{dead}")):
        (notes / name).mkdir(parents=True)
        (notes / name / "gitdir").write_text(f"{home / name / '.git'}\n")
    worktrees.clean_up(project, "x")
    assert sorted(path.name for path in notes.iterdir()) == [f"0004-{os.getpid()}", f"0005-{dead}"]


def test_cells_of_a_grid_that_was_killed_clean_up_at_the_same_time(project: Path, dead: int) -> None:
    notes = project / ".git" / "worktrees"
    for number in range(300):
        (notes / f"{number:04d}-{dead}" / "refs").mkdir(parents=True)
        for name in ("HEAD", "commondir", "index"):
            (notes / f"{number:04d}-{dead}" / name).touch()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda timeline: worktrees.clean_up(project, timeline), "abcd"))
    assert not [*notes.iterdir()]


SPAWN = """
import sys
from pathlib import Path
from tasks.storage import embedded, seaweedfs
seaweedfs.write_note = lambda *_: sys.exit(9)
with embedded.serving(Path(sys.argv[1])):
    pass
"""


def test_a_server_that_was_started_and_not_noted_is_found(tmp_path: Path) -> None:
    """Two servers must never share a folder, whatever our notes say."""
    (tmp_path / ".dvc").mkdir()
    assert subprocess.run([sys.executable, "-c", SPAWN, str(tmp_path)]).returncode == 9
    (forgotten,) = _servers(tmp_path)
    with embedded.serving(tmp_path):
        assert not psutil.pid_exists(forgotten) or psutil.Process(forgotten).status() == psutil.STATUS_ZOMBIE
        assert len(_servers(tmp_path)) == 1


def _servers(project: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["name", "cmdline", "status"]):
        here = f"-dir={project / '.chronomerge' / 'store' / 'data'}" in (process.info["cmdline"] or ())
        if here and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


START_DVC = """
import sys, time
from pathlib import Path
from tasks.storage.dvc import Dvc
with Dvc(Path(sys.argv[1])) as dvc:
    print(dvc._process.pid, flush=True)
    time.sleep(60)
"""


def test_dvc_ends_with_the_program_and_its_notes_go(project: Path) -> None:
    program = subprocess.Popen([sys.executable, "-c", START_DVC, str(project)], stdout=subprocess.PIPE, text=True)
    assert program.stdout
    child = psutil.Process(int(program.stdout.readline()))
    os.kill(child.pid, signal.SIGSTOP)  # as if it were at work for long
    program.send_signal(signal.SIGKILL)
    program.wait()
    program.stdout.close()
    os.kill(child.pid, signal.SIGCONT)
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    notes = layout.private(project) / "dvc"
    assert list(notes.iterdir())
    worktrees.clean_up(project, "x")
    assert not list(notes.iterdir())
