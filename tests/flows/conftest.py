"""One timeline, run for real, for all tests that only look at it or work on a copy."""

import os
import time
from pathlib import Path

import pytest

from tests import project as projects

NO_PICKLES = os.pathsep.join(filter(None, [str(Path(__file__).parent / "no_pickles"), os.environ.get("PYTHONPATH")]))
"""A path on which every unpickling of a class or function fails."""


@pytest.fixture(scope="session")
def timed_run(tmp_path_factory: pytest.TempPathFactory, prefect_api: dict[str, str]) -> tuple[Path, float]:
    """A project whose timeline of two steps has run to its end, and how many seconds that took."""
    folder = projects.make(tmp_path_factory.mktemp("run") / "project")
    started = time.monotonic()
    done = projects.chronomerge(folder, "run", **prefect_api)
    assert "recorded state/tiny/0000 to state/tiny/0002" in done.stdout
    return folder, time.monotonic() - started


@pytest.fixture(scope="session")
def run(timed_run: tuple[Path, float]) -> Path:
    """The project of `timed_run`."""
    return timed_run[0]
