"""How long reports and the ends of grids took on this machine, so that the plan of a grid counts its own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tasks import layout
from tasks.storage import atomic, jsonfile

KEPT = 8
"""Times of each kind that are remembered, the latest."""

Kind = Literal["report", "grid"]
"""A report alone, or all that a grid does after its last state: its servers end, and it writes its report."""


@dataclass(frozen=True)
class ReportTime:
    """What one report took."""

    states: int
    """That it shows."""
    seconds: float
    """On the clock, until its last file: of a grid since its last state."""
    kind: Kind


def note(project: Path, took: ReportTime) -> None:
    """Remember what a report took."""
    known = _known(project)
    same = [*(one for one in known if one.kind == took.kind), took][-KEPT:]
    times = [*(one for one in known if one.kind != took.kind), *same]
    atomic.write(_file(project), json.dumps([asdict(one) for one in times]) + "\n")


def of_states(project: Path, states: int) -> ReportTime | None:
    """The time of that grid's end whose number of states is nearest, of several the latest.

    Of a report alone where no grid has ended here yet; None where there was none either.
    """
    known = _known(project)
    ends = [one for one in known if one.kind == "grid"]
    return min(reversed(ends or known), key=lambda one: abs(one.states - states), default=None)


def _known(project: Path) -> list[ReportTime]:
    def take(raw: list[dict[str, Any]]) -> list[ReportTime]:
        # Older files do not tell the two kinds apart, so what they hold may be too short for a grid.
        return [ReportTime(int(one["states"]), float(one["seconds"]), _kind(one.get("kind", "report"))) for one in raw]

    try:
        return jsonfile.read(_file(project), take, "remove it; the next report makes it again")
    except FileNotFoundError:
        return []


def _kind(raw: str) -> Kind:
    return "grid" if raw == "grid" else "report"


def _file(project: Path) -> Path:
    return layout.make_private(project) / "reports.json"
