"""Runs that Prefect calls running though nobody runs them: it never hears of a SIGKILL or a reboot."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from flows.prefect.api import Api, UnansweredError
from flows.prefect.server import Server
from tasks import layout, progress
from tasks.record import Finding, Visit
from tasks.storage import atomic, locks

_UNENDED = {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}


def tags(project: Path, timeline: str) -> list[str]:
    """What marks the flow runs of a timeline in this very folder.

    Only who holds the timeline's lock starts such a run. So whoever gets the lock knows that all others are dead.
    """
    return ["chronomerge", f"timeline:{timeline}", f"folder:{_name_of(project)}"]


def crash_dead(server: Server, project: Path, timeline: str) -> list[str]:
    """Tell Prefect which runs of a timeline have crashed, for the holder of its lock; returns their names.

    In our own database nobody else runs anything, so there all that has not ended is dead.
    """
    mine = {} if server.private else {"tags": {"all_": tags(project, timeline)}}
    try:
        return crash(Api(server.url), flow_runs=mine)
    except UnansweredError as error:  # what Prefect shows of the past stops no run
        progress.report("note:", 1, 1, str(error))
        return []


def crash(api: Api, *, flow_runs: dict[str, Any], **others: Any) -> list[str]:
    """Force the runs that have not ended, of those that Prefect's filters name, to crashed; returns their names.

    Raises:
        UnansweredError: the server does not do as asked.
    """
    state = {"type": "CRASHED", "name": "Crashed", "message": "its process was gone: killed, or the machine went down"}
    crashed: dict[str, str] = {}
    while True:
        unended = api.post("flow_runs/filter", {"flow_runs": {**flow_runs, "state": _UNENDED}, **others})
        left = {run["id"]: run["name"] for run in unended if run["id"] not in crashed}
        if not left:
            return list(crashed.values())
        for one in _task_runs(api, list(left)):
            api.post(f"task_runs/{one}/set_state", {"state": state, "force": True})
        for run in left:
            api.post(f"flow_runs/{run}/set_state", {"state": state, "force": True})
        crashed |= left


def _task_runs(api: Api, flow_runs: list[str]) -> list[str]:
    asked = {"flow_runs": {"id": {"any_": flow_runs}}, "task_runs": {"state": _UNENDED}}
    return [run["id"] for run in api.post("task_runs/filter", asked)]


def _name_of(project: Path) -> str:
    """A name that this folder has alone; a copy of it gets another."""
    path, inode = layout.private(project) / "folder.json", project.stat().st_ino
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["inode"] == inode:
            return str(known["name"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    name = uuid.uuid4().hex[:12]
    atomic.write(path, json.dumps({"name": name, "inode": inode}))
    return name


def unended(visit: Visit) -> Iterator[Finding]:
    """A check of `chronomerge doctor`: such runs in our own database. The next run would mend it, too."""
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
    return locks.is_held(lock, shared=True)


def _crash(project: Path) -> None:
    from flows.prefect import server as prefect_server

    with prefect_server.serving(project, own=True) as server:
        server.wait()
        crash(Api(server.url), flow_runs={})
