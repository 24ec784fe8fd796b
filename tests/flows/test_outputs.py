"""Where verbs write: a place that cannot be is one line, at once; a project that one may only read can be looked at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import project as projects

pytestmark = pytest.mark.slow


@pytest.fixture
def places(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    return tmp_path


@pytest.mark.parametrize(
    "verb",
    [
        ("fetch", "--deployed", "--to"), ("restore", "1", "--to"), ("publish", "1", "--to"), ("report", "--to"),
        ("convert", "data/step", "--to", "transformers", "--out"),
        ("merge", "-t", "linear", "-e", "params.yaml", "-o"),
        ("heads", "merge", "a", "b", "--out"), ("heads", "remove", "a", "class", "--out"),
    ],
    ids=lambda verb: "-".join(verb[:2]) if verb[0] == "heads" else verb[0],
)  # fmt: skip
def test_a_place_that_cannot_be_is_one_line_before_any_work(run: Path, places: Path, verb: tuple[str, ...]) -> None:
    for name, words in (
        ("file/x", f"{places}/file is a file, not a folder; choose another place"),
        ("circle/x", "cannot be written (its links lead in a circle); choose another place"),
    ):
        done = projects.chronomerge(run, *verb, str(places / name), check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert words in done.stderr
    assert sorted(path.name for path in places.iterdir()) == ["circle", "file"]


_OBEDIENT = (
    "import ctypes, os, sys\n"
    "if os.geteuid() == 0: assert ctypes.CDLL(None).prctl(24, 1) == 0\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'flows', *sys.argv[1:]])"
)
"""Starts the command line; modes of files count for root too: without CAP_DAC_OVERRIDE (1; PR_CAPBSET_DROP is 24)."""


@pytest.mark.parametrize("verb", [("arrive", "n", "--data"), ("arrive", "n", "--expert"), ("inbox",)], ids=" ".join)
@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "circle", "circle/x"])
def test_a_path_that_leads_nowhere_is_refused(run: Path, tmp_path: Path, verb: tuple[str, ...], path: str) -> None:
    (tmp_path / "circle").symlink_to("circle")
    given = path if path.startswith("~") else str(tmp_path / path)
    done = projects.chronomerge(run, *verb, given, "--dry-run", check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert path in done.stdout + done.stderr


@pytest.mark.parametrize("verb", [("fetch", "--deployed", "--to"), ("publish", "1", "--to")], ids=lambda verb: verb[0])
def test_a_disk_without_room_is_one_line_that_names_it(run: Path, tmp_path: Path, verb: tuple[str, ...]) -> None:
    """The limit of a file's size stands for the disk: the system refuses a write in the same way."""
    program = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'flows', *sys.argv[1:]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *verb, str(tmp_path / "full/model")],
        cwd=run, capture_output=True, text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # Python keeps modules that it could write in part only
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"error: {tmp_path}/full" in done.stderr
    assert "File too large; free space there, and run the same command again" in done.stderr
    assert not [path for path in (tmp_path / "full").rglob("*") if path.is_file()]


def test_a_project_that_one_may_only_read_can_be_looked_at(run: Path, tmp_path: Path) -> None:
    folder = projects.copy(run, tmp_path / "project")

    def looked(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", _OBEDIENT, *args], cwd=folder, capture_output=True, text=True)

    subprocess.run(["chmod", "-R", "a-w", str(folder)], check=True)
    try:
        for verb in ("status", "states"):
            done = looked(verb)
            assert done.returncode == 0, done.stderr
            assert "tiny" in done.stdout
        for verb in ("run", "doctor"):
            done = looked(verb)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
            assert "ermission denied" in done.stderr
            assert "you may not write there" in done.stderr
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
