"""The database of our own Prefect server: a copy of an empty one, made once for each version of Prefect.

Prefect makes a new database by a hundred and more migrations, several seconds of a processor.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import sqlite3
from contextlib import closing
from pathlib import Path

from tasks import layout
from tasks.storage import atomic


def prepare(home: Path) -> None:
    """Have a database in Prefect's home. For the server's process, before it serves.

    Where the user's cache cannot be written, each home's database is made by Prefect itself.
    """
    database, empty = home / "prefect.db", _cached()
    if database.exists():
        return
    if not _sound(empty):
        asyncio.run(_make())
        try:
            empty.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _copy(database, empty)
        except OSError as error:
            print(f"no empty database is cached for later servers: {error}", flush=True)
        return
    _copy(empty, database)


def _cached() -> Path:
    return layout.user_cache("prefect") / f"{importlib.metadata.version('prefect')}.db"


def _sound(database: Path) -> bool:
    if not database.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as opened:
            complete = opened.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
            return complete and opened.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    except sqlite3.DatabaseError:
        return False


async def _make() -> None:
    """Have Prefect make the database that its settings name."""
    from prefect.server.database import provide_database_interface

    interface = provide_database_interface()
    await interface.create_db()
    await (await interface.engine()).dispose()


def _copy(source: Path, target: Path) -> None:
    """Copy a database that nobody writes to, with what its log holds, in one piece or not at all."""
    with (
        atomic.made(target) as copy,
        closing(sqlite3.connect(source)) as opened,
        closing(sqlite3.connect(copy)) as written,
    ):
        opened.backup(written)
