"""How long reports took on this machine, so that the plan of a grid counts its own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks import layout
from tasks.storage import atomic, jsonfile

KEPT = 8
"""Reports that are remembered, the latest."""


@dataclass(frozen=True)
class ReportTime:
    """What one report took."""

    states: int
    """That it shows."""
    seconds: float
    """On the clock, until its last file: of a grid since its last state, so with the end of its servers."""


def note(project: Path, took: ReportTime) -> None:
    """Remember what a report took."""
    times = [*_known(project), took][-KEPT:]
    atomic.write(_file(project), json.dumps([asdict(one) for one in times]) + "\n")


def of_states(project: Path, states: int) -> ReportTime | None:
    """The time of that report whose number of states is nearest, of several the latest; None where there was none."""
    return min(reversed(_known(project)), key=lambda one: abs(one.states - states), default=None)


def _known(project: Path) -> list[ReportTime]:
    def take(raw: list[dict[str, float]]) -> list[ReportTime]:
        return [ReportTime(int(one["states"]), float(one["seconds"])) for one in raw]

    try:
        return jsonfile.read(_file(project), take, "remove it; the next report makes it again")
    except FileNotFoundError:
        return []


def _file(project: Path) -> Path:
    return layout.make_private(project) / "reports.json"
