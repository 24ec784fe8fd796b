"""The small project of the tests of arrivals, and an inbox beside it."""

from pathlib import Path

import pytest

from tests.arrive.conftest import dvc_process, empty, one_dvc, project

__all__ = ["dvc_process", "empty", "one_dvc", "project"]  # fixtures


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder
