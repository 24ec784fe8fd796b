"""The figures of a report, each from the tidy table alone or from the geometry of task vectors."""

from __future__ import annotations

import pandas as pd

from tasks.report.figures import (
    angles,
    compatibility,
    costs,
    effects,
    fit,
    heads,
    heat_map,
    matrix,
    over_time,
    plane,
    routing,
)
from tasks.report.figures.figure import Figure
from tasks.report.summary import best_cell
from tasks.report.vectors import Vectors

NAMES = (
    "what-mattered", "protocols-techniques", "over-time", "plane", "steps-datasets", "heads", "compatibility",
    "routing", "fit", "task-vectors", "time-and-bytes",
)  # fmt: skip
"""Of all figures there can be."""


def draw(table: pd.DataFrame, vectors: Vectors) -> list[Figure]:
    """Every figure that has something to show, in the order of the page."""
    best = best_cell(table)
    technique, protocol = str(best["technique"]), str(best["protocol"])
    drawn = [
        effects.draw(table),
        heat_map.draw(table),
        over_time.draw(table, technique),
        plane.draw(table, technique),
        matrix.draw(table, technique, protocol),
        heads.draw(table, str(best["timeline"])),
        compatibility.draw(table, str(best["timeline"])),
        routing.draw(table, str(best["timeline"])),
        fit.draw(table, str(best["timeline"])),
        angles.draw(vectors),
        costs.draw(table),
    ]
    return [figure for figure in drawn if figure]
