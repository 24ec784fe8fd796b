"""A timeline run for real: Prefect, DVC, git and an S3 server, on small drawings."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tasks import nodes, waits
from tasks.storage.cache import hash_of
from tests import project as projects
from tests.flows.conftest import NO_PICKLES
from tests.project import chronomerge, git
from tests.waiting import until

pytestmark = pytest.mark.slow


def test_each_step_is_a_state_on_its_branch(run: Path) -> None:
    code = git(run, "rev-parse", "main")
    previous = None
    for step in range(3):
        tag = f"state/tiny/{step:04d}"
        parents = git(run, "rev-list", "--parents", "-1", tag).split()[1:]
        assert parents == ([previous] if previous else []) + [code]
        previous = git(run, "rev-parse", tag)
        manifest = json.loads(git(run, "show", f"{tag}:manifest.json"))
        assert manifest["step"] == step
        assert manifest["code"]["commit"] == code
        assert not manifest["code"]["dirty"]
    assert git(run, "rev-parse", "states/tiny") == previous


def test_recording_leaves_the_user_alone(run: Path) -> None:
    assert git(run, "status", "--porcelain") == ""
    assert git(run, "symbolic-ref", "--short", "HEAD") == "main"
    assert git(run, "rev-list", "--count", "main") == "1"
    assert not (run / "data").exists()
    assert git(run, "worktree", "list", "--porcelain").count("worktree ") == 1
    assert not list((run / ".chronomerge" / "work" / "tiny").iterdir())


def test_the_cache_holds_what_states_name_and_no_record_of_runs(run: Path) -> None:
    """DVC's run cache would hold each metrics file a second time, out of reach of `gc`."""
    assert [entry.name for entry in (run / ".dvc/cache").iterdir()] == ["files"]


def test_another_run_does_nothing_and_says_so(run: Path) -> None:
    before = git(run, "for-each-ref")
    done = chronomerge(run, "run", PREFECT_API_URL="http://127.0.0.1:1/api")  # would fail if it were asked
    assert "nothing to do: timeline tiny is recorded up to state/tiny/0002" in done.stdout
    assert git(run, "for-each-ref") == before


def test_dvc_agrees_that_nothing_is_left_to_do(run: Path, tmp_path: Path) -> None:
    chronomerge(run, "restore", "2", "--to", str(tmp_path / "state"))
    status = subprocess.run([projects.program("dvc"), "status"], cwd=tmp_path / "state", capture_output=True, text=True)
    assert status.stdout.strip() == "Data and pipelines are up to date."
    again = subprocess.run([projects.program("dvc"), "repro"], cwd=tmp_path / "state", capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "Running stage" not in again.stdout
    assert git(tmp_path / "state", "status", "--porcelain") == ""


def test_a_clone_restores_what_the_manifest_says(run: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(run), "clone")
    chronomerge(run, "remote", "start")
    try:
        chronomerge(clone, "remote", "use", str(run))
        git(clone, "checkout", "--quiet", "state/tiny/0001")
        pull = subprocess.run(
            [projects.program("dvc"), "pull", "--remote", "embedded"], cwd=clone, capture_output=True, text=True
        )
        assert pull.returncode == 0, pull.stderr
    finally:
        chronomerge(run, "remote", "stop")
    manifest = json.loads((clone / "manifest.json").read_text())
    for path, entry in {**manifest["inputs"], **manifest["outputs"]}.items():
        assert hash_of(clone / path).md5 == entry["md5"], path


def test_restore_fetches_from_the_store_and_says_how_much(run: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(run), "clone")
    chronomerge(tmp_path / "clone", "remote", "use", str(run))
    done = chronomerge(tmp_path / "clone", "restore", "2", PYTHONPATH=NO_PICKLES)
    assert "fetched from the remote" in done.stdout
    manifest = json.loads(git(run, "show", "state/tiny/0002:manifest.json"))
    restored = tmp_path / "clone-tiny-0002"
    assert {p: hash_of(restored / p).md5 for p in manifest["outputs"]} == {
        p: e["md5"] for p, e in manifest["outputs"].items()
    }
    again = chronomerge(tmp_path / "clone", "restore", "2", "--to", str(tmp_path / "again"))
    assert "all from the cache" in again.stdout


def test_another_machine_with_the_same_store_is_refused_before_any_work(
    run: Path, tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    """It has the code and the store, but not the states: they are commits of the first."""
    git(tmp_path, "clone", "--quiet", "--no-tags", str(run), "clone")
    projects.draw(tmp_path / "clone" / "drawings")
    chronomerge(tmp_path / "clone", "remote", "use", str(run))
    done = chronomerge(tmp_path / "clone", "run", check=False, **prefect_api)
    assert done.returncode == 2
    assert "error: state/tiny/0000 is another machine's already: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "step 0:" not in done.stderr


def test_restore_finds_what_is_damaged_in_the_cache(run: Path, tmp_path: Path) -> None:
    """A file and a folder's listing have a wrong byte each: both are named, and come from the store again."""
    manifest = json.loads(git(run, "show", "state/tiny/0001:manifest.json"))
    for path in ("data/step/expert.safetensors", "data/step/arrival"):
        md5 = manifest["outputs"][path]["md5"]
        stored = run / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
        content = bytearray(stored.read_bytes())
        content[len(content) // 2] ^= 1
        stored.unlink()  # whoever has a link to it keeps the right bytes
        stored.write_bytes(content)
    done = chronomerge(run, "restore", "1", "--to", str(tmp_path / "state"))
    for path in ("data/step/expert.safetensors", "data/step/arrival"):
        assert f"{path} of state/tiny/0001 was damaged in the cache" in done.stdout
        assert hash_of(tmp_path / "state" / path).md5 == manifest["outputs"][path]["md5"]


def test_the_guard_against_pickles_works_and_results_need_none(run: Path) -> None:
    code = "import datetime, pickle; pickle.loads(pickle.dumps(datetime.timezone.utc))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": NO_PICKLES}, capture_output=True, text=True
    )
    assert "something unpickles" in done.stderr
    references = list((run / ".chronomerge" / "references").iterdir())
    assert {json.loads(reference.read_text())["node"] for reference in references} == {
        name for name, node in nodes.NODES.items() if not node.only_with
    }
    assert not (run / ".chronomerge" / "results").exists(), "Prefect stores no results"


def test_restore_never_overwrites(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    done = chronomerge(run, "restore", "1", "--to", str(tmp_path), check=False)
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_state_spells_out_every_param_and_keeps_the_step(run: Path) -> None:
    params = YAML(typ="safe").load(git(run, "show", "state/tiny/0002:params.yaml"))
    assert params["step"] == 2
    assert params["arrival"] == {"name": "second", "update": ["images:drawings/second#train"]}
    assert params["train"]["lr"] == 5e-4  # a default that the user's file does not name


def test_the_store_has_no_secret_in_git_or_logs(run: Path) -> None:
    identities = json.loads((run / ".chronomerge/store/s3.json").read_text())["identities"]
    secret = identities[0]["credentials"][0]["secretKey"]
    assert secret in (run / ".dvc" / "config.local").read_text()
    assert git(run, "log", "--all", "--oneline", "-S", secret) == ""
    logs = list((run / ".chronomerge" / "logs").iterdir())
    assert logs
    for log in logs:
        assert secret not in log.read_text(errors="replace")
    assert (run / ".dvc" / "config.local").stat().st_mode & 0o077 == 0


def test_a_fresh_clone_knows_what_is_recorded(run: Path, tmp_path: Path) -> None:
    """A clone has the tags, but not the branch."""
    git(tmp_path, "clone", "--quiet", str(run), "clone")
    assert "last      state/tiny/0002" in chronomerge(tmp_path / "clone", "status").stdout
    assert "nothing to do" in chronomerge(tmp_path / "clone", "run").stdout


def test_restoring_again_after_the_folder_was_deleted(run: Path, tmp_path: Path) -> None:
    for _ in range(2):
        chronomerge(run, "restore", "0", "--to", str(tmp_path / "state"))
        shutil.rmtree(tmp_path / "state")


def test_a_damaged_object_is_fetched_again_before_it_is_built_on(
    run: Path, tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    """The running model of the last state rots in the cache; the next step must not merge it."""
    copy = projects.copy(run, tmp_path / "ü and a space" / "project")
    manifest = json.loads(git(copy, "show", "state/tiny/0002:manifest.json"))
    md5 = manifest["outputs"]["data/step/deployed.safetensors"]["md5"]
    stored = copy / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    stored.chmod(0o644)
    good = stored.read_bytes()
    stored.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    third = {"name": "third", "update": ["images:drawings/first#train"]}
    projects.write_params(copy, stream=[*projects.PARAMS["stream"], third])
    chronomerge(copy, "run", **prefect_api)
    assert stored.read_bytes() == good
    assert "state/tiny/0003" in projects.tags(copy)


@pytest.mark.long
def test_an_outage_while_recording_is_one_line_and_the_next_run_goes_on(
    tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    folder = projects.make(tmp_path / "project")
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "run", "--until", "0"],
        cwd=folder, env={**os.environ, **prefect_api, "AWS_MAX_ATTEMPTS": "1", waits.RECORD: "0.1,0.1,0.1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    evaluated = ".chronomerge/work/tiny/0000-*/metrics.json"
    until(lambda: process.poll() is not None or list(folder.glob(evaluated)), every=0.01)
    assert process.poll() is None
    os.kill(json.loads((folder / ".chronomerge/store/server.json").read_text())["pid"], signal.SIGKILL)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 2, errors
    assert "run again when the store answers" in errors
    assert "Traceback" not in errors
    assert projects.tags(folder) == []
    chronomerge(folder, "run", "--until", "0", **prefect_api)
    assert projects.tags(folder) == ["state/tiny/0000"]
