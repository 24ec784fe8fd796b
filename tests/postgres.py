"""A PostgreSQL server of one's own, from Debian's package or whatever else has put its programs on the path."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def programs() -> Path | None:
    """The folder of the newest one's programs."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = debian[-1] if debian else shutil.which("initdb")
    return Path(initdb).parent if initdb else None


@contextmanager
def serving(programs: Path) -> Iterator[str]:
    """The address of an empty database, as Prefect takes it; it goes with the block."""
    home = Path(tempfile.mkdtemp(prefix="chronomerge-postgres-"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # which PostgreSQL refuses to run as
        shutil.chown(home, "postgres", "postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}

    def do(program: str, *args: str) -> None:
        subprocess.run([programs / program, *args], cwd=home, check=True, capture_output=True, **user)

    data = str(home / "data")
    do("initdb", "--pgdata", data, "--username", "prefect", "--auth", "trust", "--no-sync")
    settings = f"-F -c listen_addresses= -c unix_socket_directories={home}"
    try:
        do("pg_ctl", "--pgdata", data, "--wait", "--log", str(home / "log"), "--options", settings, "start")
        yield f"postgresql+asyncpg://prefect@/postgres?host={home}"
    finally:
        do("pg_ctl", "--pgdata", data, "--mode", "immediate", "stop")
        shutil.rmtree(home)
