"""Hermetic by default: no analytics, no user's git or DVC settings, no Prefect home but a temporary one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def hermetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    home = tmp_path_factory.mktemp("home")
    settings = {
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "DVC_SITE_CACHE_DIR": str(home / "dvc-site"),
        "DVC_GLOBAL_CONFIG_DIR": str(home / "dvc-global"),
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


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One real Prefect server for all tests that run flows; a run of its own starts one more in `test_demo` alone."""
    from flows.prefect import server as prefect_server

    home = tmp_path_factory.mktemp("prefect")
    before = dict(os.environ)
    with prefect_server.serving(home) as server:
        server.wait()
        address = {name: os.environ[name] for name in ("PREFECT_API_URL", "PREFECT_HOME")}
        os.environ.clear()
        os.environ.update(before)  # only the tests that ask for it use this server
        yield address
