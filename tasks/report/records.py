"""The records of timelines, read from git all at once: manifests, metrics, params and which node wrote what."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.errors import UserError
from tasks.grid.cells import Cell
from tasks.record import Manifest, State, read_manifest, timeline_names
from tasks.record import lineage as recorded_lineage
from tasks.storage import git

_FILES = ("manifest.json", "metrics.json", "params.yaml", "dvc.yaml")


@dataclass(frozen=True)
class Record:
    """What one state says of itself."""

    state: State
    manifest: Manifest
    metrics: Mapping[str, Any]
    params: Mapping[str, Any]
    outputs: Mapping[str, tuple[str, ...]]
    """Node → the paths it wrote."""


Records = Mapping[Cell, Sequence[Record]]
"""Cell → its current lineage, step 0 first."""


def read(project: Path, cells: Sequence[Cell]) -> Records:
    """Read the current lineage of every cell's timeline. Only git is read: no weights, no cache, no network.

    Raises:
        UserError: a timeline has no states.
        GitError: the repository is damaged.
    """
    lineages = {cell: lineage(project, cell.timeline) for cell in cells}
    recorded = [state for each in lineages.values() for state in each]
    texts = git.show_all(project, [f"{state.commit}:{name}" for state in recorded for name in _FILES])
    return {cell: [_record(state, texts) for state in each] for cell, each in lineages.items()}


def lineage(project: Path, timeline: str) -> list[State]:
    """The states that a timeline's newest state goes back to, step 0 first.

    Raises:
        UserError: it has none.
    """
    found = recorded_lineage(project, timeline)
    if not found:
        others = ", ".join(timeline_names(project)) or "none; in a clone, `git fetch --tags` brings them"
        raise UserError(f"timeline {timeline!r} has no states to report on (recorded timelines: {others})")
    return found


def _record(state: State, texts: Mapping[str, str]) -> Record:
    yaml = YAML(typ="safe")
    readers: tuple[Callable[[str], Any], ...] = (
        lambda text: read_manifest(text, state.tag), json.loads, yaml.load, _outputs,
    )  # fmt: skip
    found = []
    for name, read_text in zip(_FILES, readers, strict=True):
        try:
            found.append(read_text(texts[f"{state.commit}:{name}"]))
        except (ValueError, YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{state.tag}: {name} is damaged ({reason}); `chronomerge doctor` tells more") from None
    return Record(state, *found)


@lru_cache(maxsize=8)
def _outputs(pipeline: str) -> Mapping[str, tuple[str, ...]]:
    """What the stages of a ``dvc.yaml`` write; states made by the same code share it."""
    stages = YAML(typ="safe").load(pipeline)["stages"]
    return {
        name: (*stage.get("outs", ()), *(path for metric in stage.get("metrics", ()) for path in metric))
        for name, stage in stages.items()
    }
