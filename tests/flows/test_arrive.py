"""``chronomerge arrive`` and ``inbox`` on the command line, and a real run of what arrived."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from tasks import layout
from tasks.params import load
from tasks.record import timelines
from tasks.storage import dvc_config, embedded, pointers
from tasks.storage.cache import Cache
from tests import project as projects
from tests.arrive.conftest import drop, tree
from tests.flows.serving import until
from tests.project import chronomerge, git

pytestmark = pytest.mark.slow


@pytest.fixture
def project(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project whose two steps have run."""
    folder = projects.copy(run, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def command(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(args))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def test_what_arrived_runs_though_its_original_is_gone(
    project: Path, tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    folder = drop(tmp_path / "elsewhere", {"grey noise": 6, "colour_noise": 6})
    (folder / "grey noise/logo.svg").write_text("<svg/>")
    status, text = command("arrive", "third", "--data", str(folder), "--json")
    verdict = json.loads(text)
    assert (status, verdict["outcome"], verdict["step"]) == (0, "arrived", 3)
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "third")
    shutil.rmtree(folder)
    shutil.rmtree(project / "data/arrivals/third")
    cache = Cache(dvc_config.cache_dir(project))
    kept = cache.md5s([pointers.read(project / "data/arrivals/third.dvc")[0]])
    for md5 in kept:
        cache.path(md5).unlink()  # as in a fresh clone: only the store has it
    done = chronomerge(project, "run", **prefect_api)
    assert "recorded state/tiny/0003" in done.stdout
    state = timelines.find(project, "tiny", 3)
    assert state.manifest.arrival == "third"
    raw = cache.md5s([state.entries[layout.RAW_ARRIVAL]])
    assert {md5 for md5 in kept if not md5.endswith(".dir")} <= raw  # no byte is stored twice
    named = git(project, "ls-tree", "-r", "--name-only", state.commit).splitlines()
    assert not [name for name in named if name.startswith(layout.ARRIVALS)]
    assert "state/tiny/0003 is in" in chronomerge(project, "restore", "3", "--to", str(tmp_path / "back")).stdout
    assert git(project, "status", "--porcelain") == ""
    assert git(tmp_path / "back", "status", "--porcelain") == ""


def test_a_refusal_is_status_2_and_says_everything(project: Path, tmp_path: Path) -> None:
    folder = drop(tmp_path / "elsewhere", {"grey": 2})
    (folder / "grey/0.png").write_bytes(b"torn")
    shutil.copy(project / "drawings/base/test/red circle/0.png", folder / "grey/copy.png")
    before = tree(project)
    status, text = command("arrive", "third", "--data", str(folder))
    assert status == 2
    assert "problem: " + str(folder / "grey/0.png") + ": not an image" in text
    assert "copy.png: is a test image" in text
    assert "third is refused for 2 problems, nothing was changed; the report is .chronomerge/refused/third-" in text
    status, text = command("arrive", "third", "--data", str(folder), "--json", "--dry-run")
    assert (status, json.loads(text)["problems_in_all"], json.loads(text)["report"]) == (2, 2, None)
    assert tree(project) == before
    assert projects.tags(project) == [f"state/tiny/000{t}" for t in range(3)]


def test_an_inbox(project: Path, tmp_path: Path) -> None:
    drop(tmp_path / "inbox/third", {"grey": 2})
    status, text = command("inbox", str(tmp_path / "inbox"))
    assert (status, "third: has neither READY nor arrival.yaml" in text) == (0, True)
    (tmp_path / "inbox/third/READY").touch()
    status, text = command("inbox", str(tmp_path / "inbox"), "--dry-run")
    assert "third would arrive at step 3; nothing was changed" in text
    status, text = command("inbox", str(tmp_path / "inbox"), "--json")
    assert [one["name"] for one in json.loads(text)["taken"]] == ["third"]
    (tmp_path / "inbox/bad").mkdir()
    (tmp_path / "inbox/bad/READY").touch()
    status, text = command("inbox", str(tmp_path / "inbox"))
    assert (status, "1 refused" in text, "1 known" in text) == (2, True, True)
    assert "- {name: third," in (project / "params.yaml").read_text()


def test_a_watched_inbox_takes_drops_as_they_come_and_outlasts_a_broken_params_file(
    project: Path, tmp_path: Path
) -> None:
    inbox, params = tmp_path / "inbox", project / "params.yaml"
    inbox.mkdir()

    def drop_one(name: str, shade: str) -> None:
        drop(inbox / name, {shade: 2})
        (inbox / name / "READY").touch()

    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "flows", "inbox", str(inbox), "--watch", "1"]
        process = subprocess.Popen(command, cwd=project, stdout=log, stderr=subprocess.STDOUT)
    try:
        drop_one("third", "grey")
        until(lambda: "- {name: third," in params.read_text(), (tmp_path / "log").read_text)
        whole = params.read_text()
        params.write_text("timeline: [")
        drop_one("fourth", "colour")
        until(lambda: "not now: " in (tmp_path / "log").read_text(), (tmp_path / "log").read_text)
        params.write_text(whole)
        until(lambda: "- {name: fourth," in params.read_text(), (tmp_path / "log").read_text)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait()
    assert process.returncode == 130
    assert embedded.running(project) is None
    assert [arrival.name for arrival in load(params).stream[2:]] == ["third", "fourth"]
