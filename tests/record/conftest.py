"""A repository to record states in, and a git remote that several machines share."""

from pathlib import Path

import pytest

from tasks.record.git import git


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "code.py").write_text("1\n")
    git(folder, "add", "code.py")
    git(folder, "commit", "--quiet", "--message", "code")
    return folder


@pytest.fixture
def shared(tmp_path: Path, project: Path) -> Path:
    git(tmp_path, "init", "--quiet", "--bare", "shared.git")
    git(project, "remote", "add", "origin", str(tmp_path / "shared.git"))
    git(project, "push", "--quiet", "origin", "HEAD:main")
    return tmp_path / "shared.git"
