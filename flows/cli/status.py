"""What ``chronomerge status`` shows: what runs, how the last run ended, what is recorded, pending and scheduled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows import notes, serve_note
from flows.notes import RunNote
from flows.prefect import schedules, server
from flows.prefect.api import Api, UnansweredError
from flows.run import pending
from tasks import record
from tasks.storage import locks
from tasks.text import redacted


def gather(project: Path) -> dict[str, Any]:
    """All of it as plain data."""
    todo = pending(project)
    name = todo.params.timeline
    deployed = record.deployed(project, name)
    start = record.next_start(project, name, todo.params.gate) if todo.steps else None
    names = ["base", *(arrival.name for arrival in todo.params.stream)]
    holder = locks.holder(project, name)
    note = notes.read(project, name)
    return {
        "timeline": name,
        "running": holder,
        "at": note.at or None if note and holder and not note.ended else None,
        "ended": _ended(note, holder),
        "last": todo.last.tag if todo.last else None,
        "last_promoted": todo.last is not None and record.is_promoted(todo.last, record.decided(project, name)),
        "deployed": deployed.tag if deployed else None,
        "pointers": {one: state.tag for one, state in record.pointers_of(project, name).items()},
        "starts_from": start.tag if start else None,
        "pending": [{"step": step, "arrival": names[step]} for step in todo.steps],
        "schedule": _schedule(project, name),
    }


def _ended(note: RunNote | None, holder: str | None) -> dict[str, Any] | None:
    """The newest run that has ended; one that was killed could not say when."""
    if note is None or (holder and not note.ended):
        return None
    steps = [note.first, note.last]
    return {
        "started": note.started, "ended": note.ended, "outcome": note.outcome or "killed", "steps": steps,
        "at": note.at, "why": note.why,
    }  # fmt: skip


def _schedule(project: Path, timeline: str) -> dict[str, Any]:
    """What a Prefect server knows; the user's own, or that of who serves the project now."""
    serving = serve_note.serving(project)
    users = os.environ.get("PREFECT_API_URL")
    url = users or (serving.url if serving else None)
    shown: dict[str, Any] = {
        "served": f"process {serving.pid} on {serving.host}" if serving else None,
        "server": redacted(url) if url else None,
    }
    if url is None:
        return shown
    sign_in = None if users else server.sign_in(project)
    shown |= {
        "page": redacted(url).removesuffix("/api"), "sign_in": str(server.sign_in_file(project)) if sign_in else None
    }  # fmt: skip
    try:
        facts = schedules.facts(Api(url, patience=2, sign_in=sign_in), timeline)
    except UnansweredError as error:
        return {**shown, "error": str(error)}
    if facts is None:
        return shown
    return {
        **shown, "cron": facts.cron, "timezone": facts.timezone, "next": facts.next.isoformat() if facts.next else None,
        "running": facts.running, "last": notes.corrected(project, timeline, facts.last),
    }  # fmt: skip


def text(facts: dict[str, Any]) -> str:
    steps = ", ".join(f"{p['step']} ({p['arrival']})" for p in facts["pending"])
    ended, schedule = facts["ended"], facts["schedule"]
    lines = [f"timeline {facts['timeline']}", f"  running   {facts['running'] or _starting(schedule)}"]
    if facts["at"]:
        lines.append(f"            {facts['at']}")
    if ended:
        lines.append(f"  last run  {_ended_text(ended)}")
    held = " (held)" if facts["last"] and not facts["last_promoted"] else ""
    start = f", from {facts['starts_from']}" if facts["starts_from"] != facts["last"] else ""
    lines += [
        f"  last      {facts['last'] or 'no state yet'}{held}",
        f"  deployed  {facts['deployed'] or 'nothing yet'}",
        *(f"  {one:<8}  {tag}" for one, tag in facts["pointers"].items()),
        f"  pending   {steps + start if steps else 'nothing'}",
    ]
    return "\n".join([*lines, *(f"  schedule  {line}" for line in _schedule_lines(schedule))])


def _starting(schedule: dict[str, Any]) -> str:
    """Of a timeline that nobody writes to: a scheduled run writes once it has imported everything."""
    return f"run {schedule['running']} is starting" if schedule["served"] and schedule.get("running") else "nothing"


def _ended_text(ended: dict[str, Any]) -> str:
    first, last = ended["steps"]
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    if ended["outcome"] == "killed":
        return f"{steps}, started {ended['started']}, was killed ({ended['at'] or 'while starting'}); the next goes on"
    what = f"{steps} {ended['outcome']} {ended['ended']}"
    return f"{what}: {ended['why']}" if ended["why"] else what


def _schedule_lines(schedule: dict[str, Any]) -> Iterator[str]:
    if schedule["server"] is None:
        yield "no Prefect server: nobody serves this project (chronomerge serve)"
    elif "error" in schedule:
        yield schedule["error"]
    elif "cron" not in schedule:
        yield f"none at {schedule['server']}"
    else:
        if schedule["next"]:
            yield f"next run {schedule['next']} ({schedule['timezone']}, {schedule['cron']!r})"
        elif not schedule["cron"]:
            yield "on arrival"
        if schedule["running"]:
            gone = "" if schedule["served"] else ", as Prefect says; nobody serves it on this machine"
            yield f"run {schedule['running']} under way{gone}"
        if last := schedule["last"]:
            yield f"last scheduled run {last['run']} {last['state']} {last['at']}: {last['message']}"
        if schedule["served"] is None:
            yield f"no `chronomerge serve` of it on this machine; workers may run it (server {schedule['server']})"
    if schedule.get("sign_in"):
        yield f"page {schedule['page']}; it asks for what is in {schedule['sign_in']}"
