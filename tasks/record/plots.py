"""The tables in a state's tree that ``dvc plots`` draws; DVC reads no such thing out of ``metrics.json``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tasks import layout
from tasks.record import timelines
from tasks.record.manifest import FILE, read
from tasks.record.state import State, metrics_of
from tasks.scores import MEANS, scores
from tasks.storage.git import show_all
from tasks.text import csv_cell


def write(project: Path, worktree: Path, previous: State | None, step: int, arrival: str | None) -> None:
    """Write both tables of a step whose ``metrics.json`` lies in the worktree.

    ``plots/timeline.csv`` has a row for each step so far, ``plots/datasets.csv`` one for each evaluation set.
    """
    metrics = json.loads((worktree / "metrics.json").read_text(encoding="utf-8"))
    means = [[step, arrival or "", *(metrics[name] for name in MEANS)]]
    _write(worktree / layout.PLOTS[0], ("step", "arrival", *MEANS), [*_earlier(project, previous), *means])
    _write(worktree / layout.PLOTS[1], ("dataset", "score"), scores(metrics).items())


def _earlier(project: Path, previous: State | None) -> list[list[Any]]:
    lineage = timelines.lineage(project, previous.timeline) if previous else []
    texts = show_all(project, [f"{s.commit}:{name}" for s in lineage for name in (FILE, "metrics.json")])
    rows = []
    for state in lineage:
        arrival = read(texts[f"{state.commit}:{FILE}"], state.tag).arrival
        metrics = metrics_of(texts[f"{state.commit}:metrics.json"], state.tag)
        rows.append([state.step, arrival or "", *(metrics[name] for name in MEANS)])
    return rows


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    safe = ([csv_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows([header, *safe])
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.getvalue(), encoding="utf-8")
