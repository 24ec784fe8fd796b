"""Timelines that belong to no grid as cells, so that they are reported on like those that do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.grid.cells import Cell
from tasks.report.records import lineage, params_of

_OWN = frozenset(
    {"timeline", "seed", "time", "step", "arrival", "threads", "save_every", "store", "hooks", "gate", "grid"}
)
"""Params in which timelines of one experiment may differ: what a cell says, and what changes no result."""


def cells(project: Path, timelines: Sequence[str]) -> list[Cell]:
    """One cell for each timeline, from the params of its newest state.

    Timelines that differ in seed alone become seeds of one cell. Where they differ in more than a cell can say (another
    stream, say), or two would be the same, each is a variant named after itself.

    Raises:
        UserError: a timeline has no states.
    """
    params = {name: params_of(lineage(project, name)[-1]) for name in dict.fromkeys(timelines)}
    made = [_cell(name, each, _ambiguous(params)) for name, each in params.items()]
    experiments = [{key: value for key, value in each.items() if key not in _OWN} for each in params.values()]
    one_experiment = all(each == experiments[0] for each in experiments)
    unlike = len({replace(cell, timeline="") for cell in made}) == len(made)
    return made if one_experiment and unlike else [replace(cell, variant=cell.timeline) for cell in made]


def _ambiguous(params: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """The techniques that timelines use with different settings."""
    techniques = [each["time"]["technique"] for each in params.values()]
    names = Counter({json.dumps(one, sort_keys=True, default=str): one["name"] for one in techniques}.values())
    return frozenset(name for name, count in names.items() if count > 1)


def _cell(timeline: str, params: Mapping[str, Any], ambiguous: frozenset[str]) -> Cell:
    time = params["time"]
    technique = dict(time["technique"])
    name = technique.pop("name")
    label = name.rpartition(":")[2]
    if name in ambiguous:
        label = " ".join([label, *(f"{key} {value}" for key, value in technique.items())])
    merges = (time["init"], time["deploy"]) != ("ft", "ft")
    return Cell(timeline, time["init"], time["deploy"], label if merges else "", params["seed"])
