"""The database that a new Prefect server of ours starts with."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flows.prefect import database


def schema(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as opened:
        return opened.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


def revision(path: Path) -> list[tuple[str]]:
    with closing(sqlite3.connect(path)) as opened:
        return opened.execute("SELECT version_num FROM alembic_version").fetchall()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


async def never() -> None:
    raise AssertionError("Prefect makes a database")


def test_a_new_server_starts_with_a_copy_of_the_empty_database_that_an_earlier_one_made(
    home: Path, prefect_api: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_make", never)
    database.prepare(home)
    used = Path(prefect_api["PREFECT_HOME"]) / "prefect.db"
    # Two servers that start at the same time make one each, and Prefect's constraints have no order of their own.
    assert schema(home / "prefect.db") == schema(database._cached())
    assert [name for name, _ in schema(home / "prefect.db")] == [name for name, _ in schema(used)]
    assert revision(home / "prefect.db") == revision(used) != []
    with closing(sqlite3.connect(home / "prefect.db")) as opened:
        assert opened.execute("SELECT count(*) FROM flow_run").fetchone() == (0,)


def test_a_home_that_has_a_database_keeps_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_make", never)
    (home / "prefect.db").write_bytes(b"the user's")
    database.prepare(home)
    assert (home / "prefect.db").read_bytes() == b"the user's"


@pytest.mark.parametrize("content", [b"", b"cut off", None], ids=["empty", "damaged", "not writable"])
def test_a_cache_that_cannot_be_used_is_not(
    home: Path, tmp_path: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def make() -> None:
        with closing(sqlite3.connect(home / "prefect.db")) as made:
            made.execute("CREATE TABLE alembic_version (version_num)")
            made.execute("INSERT INTO alembic_version VALUES ('new')")
            made.commit()

    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(database, "_make", make)
    if content is None:
        cache.write_bytes(b"a file where a folder should be")
    else:
        cached = database._cached()
        cached.parent.mkdir(parents=True)
        cached.write_bytes(content)
    database.prepare(home)
    assert revision(home / "prefect.db") == [("new",)]
    if content is not None:
        assert revision(database._cached()) == [("new",)]
