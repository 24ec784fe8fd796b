"""The process that forks for nodes: a fork is as ``python -m`` would be, and nothing outlives the block."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks import environment, fork_call
from tasks.record import node_server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="no server elsewhere")]

TASKS = {
    "__init__.py": "",
    "__main__.py": """
import json, os, signal, sys, time
what = sys.argv[1]
if what == "facts":
    from tasks import mine
    print(json.dumps({
        "folder": os.getcwd(), "arguments": sys.argv[1:], "mark": os.environ.get("MARK"),
        "torch": "torch" in sys.modules, "code": mine.__file__, "read": sys.stdin.read(), "pid": os.getpid()}))
elif what == "end":
    import atexit, threading
    atexit.register(print, "at exit", flush=True)
    threading.Thread(target=lambda: (time.sleep(0.2), print("a thread"))).start()
elif what == "interrupted":
    raise KeyboardInterrupt
elif what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif what == "sleep":
    print(os.getpid(), flush=True)
    time.sleep(600)
else:
    sys.exit(what)
""",
    "mine.py": "",
}


@pytest.fixture
def forked_children() -> None:
    """The server is a process from nothing here."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A server's folder of programs, and a folder with a package ``tasks`` of its own."""
    home = tmp_path_factory.mktemp("a folder's long name " + 80 * "x")
    (home / "code" / "tasks").mkdir(parents=True)
    for name, text in TASKS.items():
        (home / "code" / "tasks" / name).write_text(text)
    with (home / "log").open("w") as log, node_server.serving(home / "nodes", environment.for_child(), log) as programs:
        assert programs
        yield programs, home / "code"


def called(served: tuple[Path, Path], *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    programs, folder = served
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    return subprocess.run(
        ["python", *arguments], cwd=folder, env={**os.environ, "PATH": path, **options}, input="given", text=True,
        capture_output=True,
    )  # fmt: skip


def test_a_fork_has_the_folder_environment_streams_and_code_of_its_call(served: tuple[Path, Path]) -> None:
    first, second = (
        json.loads(called(served, "-m", "tasks", "facts", "b c", MARK=mark).stdout) for mark in ("one", "two")
    )
    assert first == {
        "folder": str(served[1]), "arguments": ["facts", "b c"], "mark": "one", "torch": True,
        "code": str(served[1] / "tasks" / "mine.py"), "read": "given", "pid": first["pid"],
    }  # fmt: skip
    assert (second["mark"], second["pid"] != first["pid"]) == ("two", True)


def test_its_status_and_its_last_words_arrive(served: tuple[Path, Path]) -> None:
    failed = called(served, "-m", "tasks", "no such tensor")
    assert (failed.returncode, failed.stderr) == (1, "no such tensor\n")
    assert called(served, "-m", "tasks", "killed").returncode == -signal.SIGKILL
    assert "No module named nothing" in called(served, "-m", "nothing").stderr


def test_it_ends_as_any_python_does(served: tuple[Path, Path]) -> None:
    assert called(served, "-m", "tasks", "end").stdout == "a thread\nat exit\n"
    interrupted = called(served, "-m", "tasks", "interrupted")
    assert (interrupted.returncode, interrupted.stderr.splitlines()[-1]) == (-signal.SIGINT, "KeyboardInterrupt")


def test_any_other_call_is_a_python_of_its_own(served: tuple[Path, Path]) -> None:
    done = called(served, "-c", "import sys; print(sys.executable, 'torch' in sys.modules)")
    assert done.stdout == f"{sys.executable} False\n"


def test_where_no_server_answers_a_python_of_its_own_runs_the_module(served: tuple[Path, Path], tmp_path: Path) -> None:
    call = [sys.executable, "-IS", fork_call.__file__, str(tmp_path), sys.executable, "-m", "tasks", "facts"]
    done = subprocess.run(call, cwd=served[1], input="given", text=True, capture_output=True, check=True)
    facts = json.loads(done.stdout)
    assert (facts["torch"], facts["read"], facts["code"]) == (False, "given", str(served[1] / "tasks" / "mine.py"))


def test_what_still_runs_ends_with_the_block(served: tuple[Path, Path], tmp_path: Path) -> None:
    with (
        (tmp_path / "log").open("w") as log,
        node_server.serving(tmp_path / "nodes", environment.for_child(), log) as programs,
    ):
        assert programs
        process = subprocess.Popen(
            [str(programs / "python"), "-m", "tasks", "sleep"], cwd=served[1], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        pid = int(process.stdout.readline())
        assert psutil.pid_exists(pid)
    assert process.wait(10) != 0
    process.stdout.close()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)
