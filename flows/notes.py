"""What a run leaves in a file while it lasts and when it ends: quick to read, with no server, and after a kill."""

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
from tasks.storage import atomic

EVERY = 1.0
"""Seconds between two notes of progress."""

FLOW_RUN = "CHRONOMERGE_FLOW_RUN"
"""Holds the name of the Prefect flow run that a run is part of, where a schedule started it."""

Outcome = Literal["recorded", "failed", "interrupted"]


@dataclass(frozen=True)
class Note:
    """The newest run of a timeline. One that was killed has no ``ended``, and nobody holds the timeline's lock."""

    host: str
    pid: int
    stream: str
    """`signature` of the arrivals it knew of."""
    first: int
    last: int
    """The steps it was to run."""
    started: str
    at: str = ""
    """What it was doing last: ``step 2: train 40/80``."""
    ended: str | None = None
    outcome: Outcome | None = None
    why: str | None = None
    """Of a failure."""
    flow_run: str = ""
    """What Prefect calls the scheduled run; empty for one that a person started."""


def read(project: Path, timeline: str) -> Note | None:
    """What the newest run of a timeline in this folder has left; None where none has ever run."""
    try:
        return Note(**json.loads(_path(project, timeline).read_text()))
    except FileNotFoundError:
        return None


def signature(params: Params) -> str:
    """Differs where the timeline, or what arrives in it, does."""
    arrivals = [arrival.model_dump(mode="json") for arrival in params.stream]
    return hashlib.sha256(json.dumps([params.timeline, arrivals]).encode()).hexdigest()[:16]


def corrected(project: Path, timeline: str, last: dict[str, str] | None) -> dict[str, str] | None:
    """What Prefect says of the last scheduled run, put right where the run has recorded all it was to record.

    Prefect calls a run cancelled or crashed that was ended between its last state and its report. What is recorded is
    the truth.
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
def kept(project: Path, params: Params, steps: range) -> Iterator[None]:
    """Keep the note of a run while the block lasts. Only for who holds the timeline's lock."""
    keeper = _Keeper(
        _path(project, params.timeline),
        Note(
            socket.gethostname(),
            os.getpid(),
            signature(params),
            steps[0],
            steps[-1],
            _now(),
            flow_run=os.environ.get(FLOW_RUN, ""),
        ),
    )
    keeper.write()
    try:
        with progress.also(keeper):
            yield
    except Exception as error:
        keeper.end("failed", " ".join(str(error).split()) or type(error).__name__)
        raise
    except BaseException:  # Ctrl-C, SIGTERM
        keeper.end("interrupted")
        raise
    keeper.end("recorded")


class _Keeper:
    def __init__(self, path: Path, note: Note):
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
