"""States recorded by an older chronomerge: restored, verified and continued from by this one."""

import json
import subprocess
from pathlib import Path

import pytest

from tasks.record import manifest
from tasks.storage.cache import hash_of
from tests import project as projects
from tests.project import ROOT, chronomerge, git

OLD = "62f48b5"
"""The last commit before manifests had a version, and before code moved to the rooms it is in now."""


def old_project(folder: Path, prefect_api: dict[str, str]) -> Path:
    """A tiny project with the code of `OLD`, and its steps 0 and 1 recorded by that code."""
    archived = subprocess.run(
        ["git", "archive", OLD, "tasks", "flows", ".dvc", ".dvcignore", ".gitignore", "dvc.yaml"],
        cwd=ROOT, capture_output=True,
    )  # fmt: skip
    assert archived.returncode == 0, (
        f"no commit {OLD} here (a shallow clone?): git fetch --unshallow brings it\n{archived.stderr.decode()}"
    )
    folder.mkdir()
    subprocess.run(["tar", "-x"], cwd=folder, input=archived.stdout, check=True)
    (folder / "tiny.json").write_text(json.dumps(projects.MODEL))
    projects.write_params(folder)
    projects.draw(folder / "drawings")
    (folder / ".gitignore").open("a").write("/drawings/\n")
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a project of then")
    chronomerge(folder, "run", "--until", "1", **prefect_api)
    assert "version" not in json.loads(git(folder, "show", "state/tiny/0001:manifest.json"))
    return folder


@pytest.mark.slow
def test_a_state_of_the_commit_before_manifests_had_versions(tmp_path: Path, prefect_api: dict[str, str]) -> None:
    project = old_project(tmp_path / "project", prefect_api)
    git(project, "rm", "-r", "--quiet", "tasks", "flows")
    projects.make_code(project)
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "this code")

    rows = json.loads(chronomerge(project, "states", "--json").stdout)
    assert [row["tag"] for row in rows] == ["state/tiny/0000", "state/tiny/0001"]

    chronomerge(project, "restore", "1", "--to", str(tmp_path / "one"))
    told = manifest.read(git(project, "show", "state/tiny/0001:manifest.json"), "state/tiny/0001")
    assert told.version == 1
    for path, entry in told.contents.items():
        assert hash_of(tmp_path / "one" / path).md5 == entry.md5, path

    assert projects.made_again(project, "1")
    (stored,) = json.loads(chronomerge(project, "verify", "--all", "--quick", "--json").stdout)
    assert stored["same"]

    chronomerge(project, "run", **prefect_api)
    made = manifest.read(git(project, "show", "state/tiny/0002:manifest.json"), "state/tiny/0002")
    assert (made.version, made.previous) == (manifest.VERSION, "state/tiny/0001")
    assert json.loads(chronomerge(project, "verify", "2", "--json").stdout)[0]["same"]
