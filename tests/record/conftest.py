"""A repository to record states in, a git remote that several machines share, one S3 server and one DVC process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.storage import store
from tasks.storage.dvc import Dvc
from tasks.storage.dvc_config import Remote
from tasks.storage.git import git


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


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    """A real S3 server."""
    home = tmp_path_factory.mktemp("s3")
    (home / ".dvc").mkdir()
    with store.open_store(home, "embedded") as remote:
        yield remote


@pytest.fixture(scope="session")
def dvc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dvc]:
    """A DVC process that gives up soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_MAX_ATTEMPTS", "3")
        process = Dvc(tmp_path_factory.mktemp("dvc"))
    with process:
        yield process
