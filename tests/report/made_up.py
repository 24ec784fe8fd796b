"""Records of states that nobody recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.grid.cells import Cell
from tasks.record.manifest import Manifest
from tasks.record.state import State
from tasks.report.records import Record
from tasks.storage.cache import Entry
from tests import manifests

NODES = {"train": ("data/step/expert.safetensors",), "evaluate": ("metrics.json",)}


def lineage(
    cell: Cell,
    arrivals: Sequence[str],
    top1: Sequence[Mapping[str, float]],
    retention: Sequence[str] = (),
    *,
    recall: Sequence[Mapping[str, Any]] | None = None,
    experts: Sequence[str] = (),
    spent: Mapping[str, float] | None = None,
    project: Path = Path("nowhere"),
) -> list[Record]:
    """Records of steps 0 to T of a cell, from the arrivals of steps 1 to T and T + 1 measurements."""
    names = list(top1[0] | (recall[0] if recall else {}))
    found = []
    for step, measured in enumerate(top1):
        tag = f"state/{cell.timeline}/{step:04d}"
        expert = experts[step] if experts else f"{cell.timeline}{step}"
        content = manifests.content(
            step=step,
            arrival=arrivals[step - 1] if step else "base",
            budget={"spent": dict(spent or {"steps": 5, "samples": 50})},
            seconds={"train": 10.0 + step, "evaluate": 2.0},
            bytes={"new": 1000 + step, "total": 5000 + step},
            inputs={"data/raw/arrival": Entry(f"arrival{step}", 7), "data/raw/evaluation": Entry("tests", 100)},
            outputs={
                "data/step/expert.safetensors": Entry(expert, 30), "metrics.json": Entry(f"metrics of {expert}", 1)
            },
        )  # fmt: skip
        metrics: dict[str, Any] = {"A_KA": 20.0 + step, "A_ZS": 30.0, "geometric_mean": 24.0, "top1": dict(measured)}
        if recall:
            metrics["recall"] = dict(recall[step])
        roles = {
            "adaptation": [{"name": name} for name in names if name not in retention],
            "retention": [{"name": name} for name in names if name in retention],
        }
        state = State(project, cell.timeline, step, f"{step:040x}")
        assert state.tag == tag
        found.append(Record(state, Manifest.model_validate(content), metrics, {"evaluate": roles}, NODES))
    return found
