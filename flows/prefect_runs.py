"""A check of `chronomerge doctor`: runs that our own Prefect database still calls running, though nobody runs."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.record import layout
from tasks.record.doctor import Finding, Visit

if TYPE_CHECKING:
    from prefect.client.schemas.filters import FlowRunFilter


def unended(visit: Visit) -> Iterator[Finding]:
    """Runs that were killed: Prefect never hears of that, and would show them as running for ever."""
    private = layout.private(visit.project)
    database = private / "prefect" / "prefect.db"
    if not database.exists() or _in_use(private / "prefect.lock"):
        return
    try:
        # Only to know whether there are any: asking Prefect itself takes a server, and that half a minute.
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT name FROM flow_run WHERE state_type IN ('RUNNING', 'PENDING')").fetchall()
    except sqlite3.Error as error:
        yield Finding(
            "Prefect's database cannot be read", str(database), f"{error}; it holds views of past runs, nothing else",
            f"delete {database.parent}, and the next run makes another",
        )  # fmt: skip
        return
    if rows:
        yield Finding(
            "runs that Prefect calls running", ", ".join(sorted(name for (name,) in rows)),
            "they were killed, and nobody told Prefect", "tell it that they crashed",
            partial(_crash, visit.project),
        )  # fmt: skip


def _in_use(lock: Path) -> bool:
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _crash(project: Path) -> None:
    from flows import prefect_server

    users = os.environ.pop("PREFECT_API_URL", None)  # the database is that of our own server
    try:
        with prefect_server.serving(project) as server:
            server.wait()
            _force(server.url)
    finally:
        if users:
            os.environ["PREFECT_API_URL"] = users


def _force(url: str) -> None:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    kinds = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
    left: FlowRunFilter = FlowRunFilter(state=FlowRunFilterState(type=kinds))
    with SyncPrefectClient(url) as client:
        while runs := client.read_flow_runs(flow_run_filter=left):
            for run in runs:
                client.set_flow_run_state(run.id, Crashed(message="its process was gone"), force=True)
