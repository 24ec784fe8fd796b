"""One timeline, run for real, for all tests that only look at it or work on a copy."""

import os
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import project as projects
from tests import session

NO_PICKLES = os.pathsep.join(filter(None, [str(Path(__file__).parent / "no_pickles"), os.environ.get("PYTHONPATH")]))
"""A path on which every unpickling of a class or function fails."""


class Recorded(NamedTuple):
    """A project whose timeline of two steps has run to its end."""

    project: Path
    seconds: float
    """How long that took."""


@pytest.fixture(scope="session")
def recorded_run(in_common: Path, tmp_path_factory: pytest.TempPathFactory, prefect_api: dict[str, str]) -> Recorded:
    """The project that the first worker has made for all of them: only to be copied, or looked at."""

    def make() -> tuple[str, float]:
        folder = projects.make(tmp_path_factory.mktemp("recorded") / "project")
        started = time.monotonic()
        done = projects.chronomerge(folder, "run", **prefect_api)
        assert "recorded state/tiny/0000 to state/tiny/0002" in done.stdout
        return str(folder), time.monotonic() - started

    folder, seconds = session.once(in_common, "recorded", make)
    return Recorded(Path(folder), seconds)


@pytest.fixture(scope="session")
def run(recorded_run: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This worker's copy of that project."""
    return projects.copy(recorded_run.project, tmp_path_factory.mktemp("run") / "project")
