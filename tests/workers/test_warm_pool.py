"""The warm process pool: nodes run in forks with the code of their job, and end with the process that runs them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks.workers import warm_pool
from tasks.workers.job import packed
from tasks.workers.warm_pool import WarmProcess
from tests.project import ROOT
from tests.waiting import until

REAL = (
    "tasks/__init__.py", "tasks/layout.py", "tasks/processes.py", "tasks/model/__init__.py",
    "tasks/model/light_imports.py", "tasks/model/torchvision_shim.py", "tasks/workers/__init__.py",
    "tasks/workers/child.py",
)  # fmt: skip
NODE = """
import os, sys, time
from pathlib import Path
import tasks.model.models
Path("made").write_text(f"{VERSION} {sys.argv[1:]} {os.getpid()} {tasks.model.models.loaded}")
print("a line", file=sys.stderr, flush=True)
{"exit": lambda: sys.exit(2), "say": lambda: sys.exit("why"), "wait": lambda: time.sleep(60), "ok": int}[sys.argv[1]]()
"""


def code(folder: Path, version: int = 1) -> bytes:
    """A package that imports quickly, with the real child process and a node."""
    for name in REAL:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    (folder / "tasks/model/models.py").write_text(
        "import os\n\ndef preload():\n    global loaded\n    loaded = os.getpid()\n"
    )
    (folder / "tasks/node.py").write_text(f"VERSION = {version}\n" + NODE)
    return packed(folder, ["tasks"])


@pytest.fixture
def process(tmp_path: Path) -> Iterator[WarmProcess]:
    made = WarmProcess(tmp_path / "home", code(tmp_path / "code"))
    (tmp_path / "job").mkdir()
    yield made
    made.close()


def run(process: WarmProcess, folder: Path, *arguments: str) -> tuple[int, list[str]]:
    lines: list[str] = []
    status, seconds = process.run(folder, ["tasks.node", *arguments], lines.append)
    assert seconds > 0
    return status, lines


def test_equal_content_makes_equal_archives(tmp_path: Path) -> None:
    first = code(tmp_path / "a")
    time.sleep(1.1)  # the seconds of a time stamp
    assert code(tmp_path / "b") == first
    assert code(tmp_path / "b", version=2) != first


def test_nodes_run_in_forks_of_one_process_that_has_imported(process: WarmProcess, tmp_path: Path) -> None:
    pids = set()
    for _ in range(2):
        assert run(process, tmp_path / "job", "ok", "x") == (0, ["a line"])
        version, arguments, pid, loaded = (tmp_path / "job" / "made").read_text().replace("', '", "','").split()
        assert (version, arguments) == ("1", "['ok','x']")
        assert pid != loaded
        pids.add((pid, loaded))
    assert len({pid for pid, _ in pids}) == 2
    assert len({loaded for _, loaded in pids}) == 1


def test_a_failed_node_returns_the_status_and_output_of_a_command(process: WarmProcess, tmp_path: Path) -> None:
    assert run(process, tmp_path / "job", "exit") == (2, ["a line"])
    assert run(process, tmp_path / "job", "say") == (1, ["a line", "why"])
    status, lines = run(process, tmp_path / "job", "nonsense")
    assert status == 1
    assert lines[-1] == "KeyError: 'nonsense'"
    assert run(process, tmp_path / "job", "ok") == (0, ["a line"])


def test_a_node_ends_with_its_warm_process(process: WarmProcess, tmp_path: Path) -> None:
    ended: list[int] = []
    wait = threading.Thread(target=lambda: ended.append(run_to_the_end(process, tmp_path / "job")))
    wait.start()
    made = tmp_path / "job" / "made"
    until(lambda: made.exists() and made.read_text())
    pid, parent = map(int, made.read_text().split()[-2:])
    psutil.Process(parent).kill()
    wait.join(20)
    assert ended == [-9]
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert not process.alive


def run_to_the_end(process: WarmProcess, folder: Path) -> int:
    return process.run(folder, ["tasks.node", "wait"], lambda _: None)[0]


def test_a_job_reuses_the_process_of_the_last_one_if_the_code_is_equal_and_that_one_succeeded(tmp_path: Path) -> None:
    home, old, new = tmp_path / "home", code(tmp_path / "code"), code(tmp_path / "code", version=2)
    with warm_pool.warm_process(home, old) as first:
        pass
    with warm_pool.warm_process(home, old) as again:
        assert again is first
    with warm_pool.warm_process(home, new) as other:
        assert other is not first
        assert not first.alive
        (tmp_path / "job").mkdir()
        run(other, tmp_path / "job", "ok")
        assert (tmp_path / "job" / "made").read_text().startswith("2 ")
    with pytest.raises(RuntimeError), warm_pool.warm_process(home, new) as failed:
        raise RuntimeError
    assert failed is other
    assert not other.alive
