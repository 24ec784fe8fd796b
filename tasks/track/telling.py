"""Tell trackers of the states that they have not been told of yet."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

from tasks import environment, layout, processes, progress
from tasks.params import Named, Params
from tasks.record import State
from tasks.storage import atomic, dvc_config
from tasks.storage.cache import Cache
from tasks.text import redacted
from tasks.track.tracker import Told, of
from tasks.units import counted

SECONDS = 120
"""A tracker that takes longer is ended."""
LOGGED = 1 << 20
"""Bytes of what one process of it prints that go into the log: the last ones."""


def check(params: Params) -> list[str]:
    """Warnings on trackers whose library is not installed.

    Raises:
        UserError: there is no tracker of that name, or a setting is wrong.
    """
    return [
        f"track: {one.name} is not installed, so it is told nothing; pip install 'chronomerge[{one.name}]'"
        for one in params.track
        if not of(one).installed()
    ]


def tell(project: Path, params: Params) -> int:
    """Tell every tracker of params.yaml what it does not know of the timeline; returns how many could not be told.

    Nothing that a tracker does stops a run: what fails is reported, and tried again after the next step.
    """
    failed = 0
    for one in params.track:
        try:
            why = _tell(project, params.timeline, one)
        except Exception as error:  # a tracker is a view
            why = f"{type(error).__name__}: {error}"
        if why:
            failed += 1
            progress.report(
                f"tracker {one.name}:", 1, 1, f"{' '.join(why.split())[:300]}; tried again after the next step"
            )
    return failed


def _tell(project: Path, timeline: str, one: Named) -> str:
    if not of(one).installed():
        return ""  # which `check` has said
    from tasks.publish import public  # only a run with trackers pays for it
    from tasks.report import plain, records, tidy  # and pandas

    note = layout.private(project) / "track" / f"{one.name}-{timeline}.json"
    known = set(json.loads(note.read_text(encoding="utf-8"))) if note.exists() else set()
    (cell,) = plain.cells(project, [timeline])
    recorded = records.read(project, [cell])
    new = [each.state for each in recorded[cell] if each.state.commit not in known]
    if not new:
        return ""
    rows = tidy.table(recorded, {})
    states = [_told(state, rows[rows["tag"] == state.tag].to_dict("records")) for state in new]
    folder = layout.make_private(project) / "track" / one.name
    folder.mkdir(parents=True, exist_ok=True)
    job = {
        "tracker": one.model_dump(), "folder": str(folder), "timeline": timeline,
        "params": _flat(public.params(new[-1].params)), "states": [state.model_dump() for state in states],
    }  # fmt: skip
    if why := _in_a_process(project, job):
        return f"{counted(len(new), 'state')} not told ({why})"
    note.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(note, json.dumps(sorted(known | {state.commit for state in new})))
    return ""


def _told(state: State, rows: Sequence[Mapping[Any, Any]]) -> Told:
    from tasks.publish import public  # only a run with trackers pays for it

    metrics = {
        f"{row['metric']}/{row['dataset']}".rstrip("/").replace(":", "."): float(row["value"])
        for row in rows
        if math.isfinite(row["value"])
    }
    manifest = public.manifest(state.manifest.as_dict())
    files = {path: entry.md5 for path, entry in state.manifest.contents.items()}
    return Told(
        step=state.step, tag=state.tag, commit=state.commit, recorded_at=state.manifest.recorded.at, metrics=metrics,
        files=files, curve=_curve(state), manifest=manifest,
    )  # fmt: skip


def _curve(state: State) -> str | None:
    """The training curve of a state, where anything was trained and this machine has it."""
    entry = state.entries.get(layout.TRAINING)
    cache = Cache(dvc_config.cache_dir(state.project))
    if entry is None or cache.missing(entry):
        return None
    md5 = cache.members(entry).get("curve.csv")
    return cache.path(md5).read_text(encoding="utf-8") if md5 else None


def _flat(content: Any, path: str = "") -> dict[str, str]:
    """Nested params as ``train.lr`` → text; lists by number."""
    if not isinstance(content, dict | list) or not content:
        return {path: str(content)}
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    return {key: text for name, one in pairs for key, text in _flat(one, f"{path}.{name}".lstrip(".")).items()}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started: wandb has a service of its own, in a session of its own."""
    if process.poll() is not None:
        return
    started: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for one in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def _text(file: IO[bytes]) -> str:
    """The end of what was written to a file."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - LOGGED))
    return file.read().decode(errors="replace")


def _in_a_process(project: Path, job: Mapping[str, Any]) -> str:
    """Have a process of its own talk to the tracker; returns why it failed, or nothing."""
    log = layout.make_private(project) / "logs" / "track.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            [*processes.PYTHON, "-m", "tasks.track"], stdin=subprocess.PIPE, stdout=output, stderr=printed,
            env=environment.for_child(), cwd=project,
        )  # fmt: skip
        try:
            process.communicate(json.dumps(job).encode(), timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return f"no answer within {SECONDS} s"
        finally:
            _end(process)
            with log.open("a", encoding="utf-8") as file:  # libraries print addresses with their passwords
                file.write(redacted(_text(printed)))
        said = _text(output)
    if process.returncode == 0:
        return ""
    lines = said.strip().splitlines()
    return lines[-1] if lines else f"status {process.returncode}; {log} says more"
