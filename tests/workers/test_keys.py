"""Connections to a Dask scheduler: with keys nobody else gets in, without them the risk is named."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster, Security

from tasks import progress
from tasks.errors import UserError
from tasks.workers import keys, pool


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CONNECT_SECONDS", 3)


@pytest.fixture
def notes() -> Iterator[list[str]]:
    heard: list[str] = []
    with progress.also(lambda what, _done, _total, note="": heard.append(f"{what} {note}")):
        yield heard


def test_who_has_the_keys_connects_and_nobody_else(tmp_path: Path, notes: list[str]) -> None:
    project, stranger = tmp_path / "project", tmp_path / "stranger"
    for folder in (project, stranger):
        folder.mkdir()
        keys.make(folder)
    authority, certificate, key = (
        str(keys.folder(project) / name) for name in ("authority.pem", "certificate.pem", "key.pem")
    )
    roles = {f"tls_{role}_{what}": path for role in ("scheduler", "worker", "client")
             for what, path in (("cert", certificate), ("key", key))}  # fmt: skip
    security = Security(tls_ca_file=authority, require_encryption=True, **roles)
    with LocalCluster(
        n_workers=1, processes=False, protocol="tls://", host="127.0.0.1", dashboard_address=None, security=security
    ) as cluster:
        address = cluster.scheduler_address
        assert address.startswith("tls://127.0.0.1:")
        with pool.opened(address, project) as workers:
            assert workers
            assert workers.slots >= 1
        assert notes == []
        with pytest.raises(UserError, match="its keys must be those of this project"), pool.opened(address, stranger):
            pass
        plain = address.replace("tls://", "tcp://")
        with pytest.raises(UserError, match="no Dask scheduler answers there"), pool.opened(plain, project):
            pass


def test_processes_of_dask_import_nothing_from_a_shared_folder(tmp_path: Path) -> None:
    """Dask puts its folder first on the path of a scheduler, a worker and a nanny."""
    name, _, folder = keys.SCRATCH.partition("=")
    assert all(line.startswith(f"{keys.SCRATCH} dask ") for line in keys.starts(tmp_path))
    (tmp_path / ".chronomerge").mkdir(mode=0o700)
    shared = tmp_path / "shared"
    (shared / "dask-scratch-space").mkdir(parents=True)
    program = "import sys; from distributed import Scheduler; Scheduler(); print(sys.path[0])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "TMPDIR": str(shared), name: folder},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).parent == tmp_path / ".chronomerge/dask/dask-scratch-space"


def test_a_scheduler_without_keys_is_named_as_a_risk(tmp_path: Path, notes: list[str]) -> None:
    with (
        LocalCluster(
            n_workers=1, processes=False, protocol="tcp://", host="127.0.0.1", dashboard_address=None
        ) as cluster,
        pool.opened(cluster.scheduler_address, tmp_path),
    ):
        pass
    (note,) = notes
    assert note.startswith(f"note: {cluster.scheduler_address} has no sign-in: whoever reaches it")
    assert "chronomerge workers keys" in note


def test_keys_are_their_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    made = keys.make(tmp_path)
    assert made.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in made.iterdir()} == {0o600}
    with pytest.raises(UserError, match=r"has keys, .*delete it to make new ones"):
        keys.make(tmp_path)
    next(made.iterdir()).unlink()
    with pytest.raises(UserError, match=r"is missing; copy the whole folder"):
        keys.security("tls://127.0.0.1:8786", tmp_path)


def test_missing_keys_are_found_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no keys in .*`chronomerge workers keys`"), pool.opened("tls://x:1", tmp_path):
        pass
