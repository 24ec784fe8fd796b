"""A tiny project whose deployed weights are random."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.evaluate.node import DEPLOYED
from tasks.train.node import INIT, initialize
from tests.train.project import params, project


@pytest.fixture(scope="package")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with random weights deployed."""
    folder = project(tmp_path_factory.mktemp("deployed"))
    initialize(folder, params(0))
    shutil.move(folder / INIT, folder / DEPLOYED)
    return folder


@pytest.fixture
def folder(deployed: Path, tmp_path: Path) -> Path:
    """A copy of `deployed` to work in."""
    return Path(shutil.copytree(deployed, tmp_path / "project"))
