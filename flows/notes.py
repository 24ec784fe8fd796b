"""The note of a run: a file with its progress and outcome, readable without a server and after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from tasks import layout, progress
from tasks.params import Params
from tasks.record import lineage
from tasks.storage import atomic, jsonfile

EVERY = 1.0
"""Seconds between two notes of progress."""

FLOW_RUN = "CHRONOMERGE_FLOW_RUN"
"""The environment variable with the name of the Prefect flow run, where a schedule started the run."""

Outcome = Literal["recorded", "failed", "interrupted"]


@dataclass(frozen=True)
class RunNote:
    """The newest run of a timeline. A killed run has no ``ended``, and the lock of its timeline is free."""

    host: str
    pid: int
    stream: str
    """`signature` of the stream at its start."""
    first: int
    last: int
    """The steps that were pending at its start: ``first`` to ``last``."""
    started: str
    at: str = ""
    """Its last progress: ``step 2: train 40/80``."""
    ended: str | None = None
    outcome: Outcome | None = None
    why: str | None = None
    """The error of a failed run."""
    flow_run: str = ""
    """Prefect's name of the scheduled run; empty for a run that a person started."""


def read(project: Path, timeline: str) -> RunNote | None:
    """The note of the newest run of a timeline in this folder; None if there was no run."""
    try:
        return jsonfile.read(_path(project, timeline), lambda note: RunNote(**note), "remove it; it is of the last run")
    except FileNotFoundError:
        return None


def signature(params: Params) -> str:
    """A hash of the timeline's name and its arrivals, as 16 hexadecimal digits."""
    arrivals = [arrival.model_dump(mode="json") for arrival in params.stream]
    return hashlib.sha256(json.dumps([params.timeline, arrivals]).encode()).hexdigest()[:16]


def corrected(project: Path, timeline: str, last: dict[str, str] | None) -> dict[str, str] | None:
    """Prefect's state of the last scheduled run, corrected to completed if the run recorded all its steps.

    If a run is ended between its last state and its report, Prefect calls it cancelled or crashed. The recorded states
    decide.
    """
    note = read(project, timeline)
    if not (last and note and note.outcome == "recorded" and note.flow_run == last["run"]):
        return last
    if last["state"] == "completed":
        return last
    steps = range(note.first, note.last + 1)
    tags = [state.tag for state in lineage(project, timeline) if state.step in steps]
    return {**last, "state": "completed", "message": f"recorded {', '.join(tags)}",
            "prefect": f"{last['state']}: {last['message']}"}  # fmt: skip


@contextmanager
def recording(project: Path, params: Params, steps: range) -> Iterator[None]:
    """Write the note of a run during the block. The caller holds the lock of the timeline."""
    writer = _NoteWriter(
        _path(project, params.timeline),
        RunNote(
            socket.gethostname(),
            os.getpid(),
            signature(params),
            steps[0],
            steps[-1],
            _now(),
            flow_run=os.environ.get(FLOW_RUN, ""),
        ),
    )
    writer.write()
    try:
        with progress.also(writer):
            yield
    except Exception as error:
        writer.end("failed", " ".join(str(error).split()) or type(error).__name__)
        raise
    except BaseException:  # Ctrl-C, SIGTERM
        writer.end("interrupted")
        raise
    writer.end("recorded")


class _NoteWriter:
    def __init__(self, path: Path, note: RunNote):
        self._path, self._note = path, note
        self._written = 0.0
        self._lock = threading.Lock()

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        with self._lock:
            count = f" {done}/{total}" if total > 1 else ""
            self._note = replace(self._note, at=f"{what}{count} {note}".rstrip())
            if time.monotonic() - self._written >= EVERY:
                self.write()

    def end(self, outcome: Outcome, why: str | None = None) -> None:
        with self._lock:
            self._note = replace(self._note, ended=_now(), outcome=outcome, why=why)
            self.write()

    def write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(self._path, json.dumps(asdict(self._note)))
        self._written = time.monotonic()


def _path(project: Path, timeline: str) -> Path:
    return layout.private(project) / "runs" / f"{timeline}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
