"""Hermetic by default: no analytics, no user's git or DVC settings, no Prefect home but a temporary one."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.storage import store
from tasks.storage.dvc import Dvc
from tasks.storage.dvc_config import Remote
from tasks.storage.git import git
from tests import forks, isolation, postgres, session, worker_server

FIRST = (
    "flows/test_care.py", "flows/test_grid.py", "flows/test_serve.py", "flows/test_withdraw.py", "flows/test_kill.py",
    "flows/test_codecs.py", "chronomerge/test_api.py", "flows/test_report.py", "flows/test_demo.py",
    "flows/test_surroundings.py", "flows/test_past.py", "train/test_resume.py",
    "record/test_older_states.py", "flows/test_run.py", "flows/test_hub_timeline.py", "flows/test_routed.py",
    "flows/test_gates.py", "flows/test_fitted.py", "flows/test_heads.py",
    "flows/test_arrive.py", "flows/test_stream.py", "flows/test_bad_input.py", "report/test_page.py",
    "record/test_writers.py", "record/test_node_server.py", "record/test_faults.py",
)  # fmt: skip
"""What takes longest, so that no worker is left with it at the end."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Have xdist's workers, if there are any, as forks of a process that has imported what they import."""
    options = session.config.option
    if options.tx and not hasattr(session.config, "workerinput"):
        forks.FOLDER = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        options.tx = [f"popen//python={worker_server.command(forks.FOLDER / 'workers')}"] * len(options.tx)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, then what is slow, then the rest; within a file, tests stay in order."""

    def rank(item: pytest.Item) -> tuple[int, bool]:
        path = item.path.relative_to(item.config.rootpath / "tests").as_posix()
        return FIRST.index(path) if path in FIRST else len(FIRST), item.get_closest_marker("slow") is None

    ranks: dict[Path, tuple[int, bool]] = {}
    for item in items:
        ranks[item.path] = min(rank(item), ranks.get(item.path, (len(FIRST), True)))
    items.sort(key=lambda item: ranks[item.path])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which programs of the system are missing, and what could not be tested without them."""
    from tests.report.conftest import CHROMIUM

    missing = [
        f"{program} is not installed, so {tests} were skipped; apt-get install {package}"
        for program, package, tests, there in (
            ("Chromium", "chromium", "the tests of the report in a browser", CHROMIUM),
            ("PostgreSQL", "postgresql", "the tests of schedules on it", postgres.programs()),
        )
        if not there
    ]
    for line in missing:
        terminalreporter.write_line(f"note: {line}", yellow=True)


@pytest.fixture(autouse=True, scope="session")
def in_common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that all workers of this session share."""
    own = tmp_path_factory.getbasetemp()
    folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forks, "FOLDER", folder)
        yield folder
    forks.server.cache_clear()


@pytest.fixture(autouse=True, scope="session")
def hermetic(in_common: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    home = tmp_path_factory.mktemp("home")
    settings = {
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "DVC_SITE_CACHE_DIR": str(home / "dvc-site"),
        "DVC_GLOBAL_CONFIG_DIR": str(home / "dvc-global"),
        "XDG_CACHE_HOME": str(in_common / "cache"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": str(home / "gitconfig"),
    }
    Path(settings["GIT_CONFIG_GLOBAL"]).write_text(
        "[user]\n\tname = Tester\n\temail = tester@localhost\n[init]\n\tdefaultBranch = main\n"
        "[advice]\n\tdetachedHead = false\n[safe]\n\tdirectory = *\n"
    )
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Each test finds the process as if it were the first."""
    with isolation.as_before():
        yield


@pytest.fixture(scope="session")
def prefect_api(in_common: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One real Prefect server for all tests of the session that run flows; a test without it starts one of its own."""

    def start() -> dict[str, str]:
        return session.start_prefect_server(tmp_path_factory.mktemp("prefect"), os.environ)

    address: dict[str, str] = session.once(in_common, "prefect", start)
    return address


@pytest.fixture
def forked_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process starts to record, restore or verify a state is a fork of one that has imported all."""
    monkeypatch.setattr(subprocess, "Popen", forks.Popen)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with one commit."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "code.py").write_text("1\n")
    git(folder, "add", "code.py")
    git(folder, "commit", "--quiet", "--message", "code")
    return folder


@pytest.fixture
def shared(tmp_path: Path, project: Path) -> Path:
    """The git remote of that repository, which several machines may share."""
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
def dvc(in_common: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dvc]:  # noqa: ARG001
    """A DVC process that gives up soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", forks.Popen)
        patch.setenv("AWS_MAX_ATTEMPTS", "3")
        process = Dvc(tmp_path_factory.mktemp("dvc"))
    with process:
        yield process
