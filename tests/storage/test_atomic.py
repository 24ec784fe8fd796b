"""Files and folders that are complete or absent, with several writers and with killed ones."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.storage import atomic

WRITER = """
import sys, time
from pathlib import Path
from tasks.storage import atomic
with atomic.made(Path(sys.argv[1])) as part:
    part.write_text(sys.argv[2])
    print("written", flush=True)
    sys.stdin.readline()
"""


class Writer:
    """Another process, which has written a file and waits before the rename."""

    def __init__(self, target: Path, content: str) -> None:
        command = [sys.executable, "-c", WRITER, str(target), content]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        assert self.process.stdout.readline() == "written\n"

    def finish(self) -> int:
        self.process.communicate("\n")
        return self.process.returncode

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


def children(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_two_processes_write_one_file_and_the_second_is_killed(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    first, second = Writer(target, "first"), Writer(target, "second")
    second.kill()
    assert len(names(tmp_path)) == 2  # what the killed one left, and what the living one writes
    atomic.write(target, "third")
    assert len(names(tmp_path)) == 2  # the file, and what the living one writes
    assert target.read_text() == "third"
    assert first.finish() == 0
    assert target.read_text() == "first"
    assert names(tmp_path) == ["file.txt"]


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    atomic.write(target, "before")
    Writer(target, "lost").kill()
    assert target.read_text() == "before"
    atomic.write(target, "after")
    assert names(tmp_path) == ["file.txt"]
    assert children(tmp_path) == ["file.txt"]


def test_leftovers_of_a_folder_go_and_a_living_writer_keeps_its_file(tmp_path: Path) -> None:
    living, dead = Writer(tmp_path / "a", "living"), Writer(tmp_path / "b", "dead")
    dead.kill()
    atomic.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".a.part"]
    assert living.finish() == 0
    assert (tmp_path / "a").read_text() == "living"


@pytest.mark.parametrize("planted", ["file", "link to a file", "link to a folder", "dead link"])
def test_nothing_is_written_through_what_has_the_temporary_name(planted: str, tmp_path: Path) -> None:
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "home" / "file.txt"
    target.parent.mkdir()
    shared = target.with_name(".file.txt.part")
    if planted == "file":
        shared.write_text("of an earlier version")
    elif planted == "link to a file":
        elsewhere.write_text("untouched")
        shared.symlink_to(elsewhere)
    else:
        if planted == "link to a folder":
            elsewhere.mkdir()
            (elsewhere / "note").write_text("untouched")
        shared.symlink_to(elsewhere)
    before = {name: (tmp_path / name).read_text() for name in names(tmp_path) if name.startswith("elsewhere")}
    atomic.write(target, "new")
    assert target.read_text() == "new"
    assert children(target.parent) == ["file.txt"]
    assert {n: (tmp_path / n).read_text() for n in names(tmp_path) if n.startswith("elsewhere")} == before


def test_many_threads_write_one_file_and_it_is_that_of_one(tmp_path: Path) -> None:
    target, contents = tmp_path / "file.bin", [bytes([i]) * 200_000 for i in range(8)]

    def write(content: bytes) -> None:
        for _ in range(10):
            atomic.write(target, content)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, contents))
    assert target.read_bytes() in contents
    assert children(tmp_path) == ["file.bin"]


def test_the_old_content_stays_until_the_new_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "note"
    atomic.write(path, "old")
    with atomic.made(path) as part:
        part.write_text("half")
        assert path.read_text() == "old"
        part.write_text("new ä")
    assert path.read_bytes() == "new ä".encode()
    assert children(tmp_path) == ["note"]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic.made(tmp_path / "note") as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic.write(tmp_path / "folder", b"")
    assert children(tmp_path) == ["folder"]


def test_a_folder_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    for content in ("one", "two"):
        with atomic.made_folder(target) as part:
            (part / content).write_text(content)
    assert children(target) == ["two"]
    assert children(target.parent) == ["folder"]


def test_a_link_to_a_file_takes_the_place_of_another_file(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("content")
    for before in (None, "other"):
        if before:
            target.unlink()
            target.write_text(before)
        for _ in range(2):
            atomic.link(source, target)
            assert target.samefile(source)
    assert children(tmp_path) == ["source", "target"]
    with pytest.raises(FileNotFoundError):
        atomic.link(tmp_path / "missing", tmp_path / "new")
