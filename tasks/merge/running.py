"""The running state of a sequential merge on disk: a folder with scalars and one checkpoint an array."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import UserError
from tasks.merge.layout import MergeLayout
from tasks.merge.reading import read
from tasks.merge.sequential import Accumulator, RunningState, state_entries
from tasks.merge.statistics import TOTAL, RunningStatistics
from tasks.model.sinks import FileSink
from tasks.model.sources import FileSource, TensorEntry
from tasks.storage import atomic

_FORMAT = 1
_SCALARS = "state.json"
_STATISTICS = "statistics.safetensors"


def load(technique: Accumulator, folder: Path | None, plan: MergeLayout, stack: ExitStack) -> RunningState:
    """The state in a folder; that of no expert where there is none.

    Raises:
        UserError: it is missing or damaged, or of another technique, other settings or another model.
    """
    if folder is None:
        return RunningState()
    path = folder / _SCALARS
    try:
        scalars = json.loads(path.read_text(encoding="utf-8"))
        earlier = RunningState(
            int(scalars["count"]), float(scalars["total"]), dict(scalars["norms"]), dict(scalars["moved"])
        )
        made_by = (scalars["format"], scalars["technique"], scalars["settings"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such running state; the earlier time step should have left it") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a running state") from None
    if made_by[:2] != (_FORMAT, technique.name) or _lasting(technique, made_by[2]) != _lasting(technique):
        raise UserError(
            f"{path}: the running state was made by {made_by[1]} with {made_by[2]}; it cannot be continued "
            f"by {technique.name} with other settings; start a new timeline, or keep its technique"
        )
    earlier.arrays = {
        array: stack.enter_context(FileSource(folder / f"{array}.safetensors")) for array in technique.state
    }
    wanted = state_entries(technique, plan.merged)
    for array, source in earlier.arrays.items():
        if source.entries != wanted[array]:
            alike = ", or was made with statistics of another form" if technique.statistics else ""
            raise UserError(
                f"{source.label}: the running state is of another architecture, or of an earlier version that merged "
                f"other tensors{alike}; start a new timeline"
            )
    return earlier


def _lasting(technique: Accumulator, settings: Any = None) -> Any:
    """Settings without those that only the output depends on; by default the technique's own."""
    every = technique.model_dump(mode="json") if settings is None else settings
    if not isinstance(every, dict):
        return every
    return {key: value for key, value in every.items() if key not in technique.output_settings}


def save(technique: Accumulator, earlier: RunningState, folder: Path) -> None:
    """Write the scalars; arrays and statistics are written while merging."""
    scalars = {
        "format": _FORMAT,
        "technique": technique.name,
        "settings": technique.model_dump(mode="json"),
        "count": earlier.count,
        "total": earlier.total,
        "norms": earlier.norms,
        "moved": earlier.moved,
    }
    atomic.write(folder / _SCALARS, json.dumps(scalars, indent=2, sort_keys=True) + "\n")


def load_statistics(folder: Path | None, plan: MergeLayout) -> RunningStatistics:
    """BatchNorm's statistics of the experts so far.

    Raises:
        UserError: the file is missing or damaged.
    """
    if folder is None or not plan.statistics:
        return RunningStatistics()
    with FileSource(folder / _STATISTICS) as source:
        if source.entries.keys() != {*plan.statistics, TOTAL}:
            raise UserError(f"{source.label}: the running state is of another architecture; start a new timeline")

        def values(name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
            return read(source, name, 0, source.entries[name].size, precision=np.float64)

        return RunningStatistics({name: values(name) for name in plan.statistics}, float(values(TOTAL)[0]))


def save_statistics(moments: RunningStatistics, sink: FileSink) -> None:
    """Write what `load_statistics` reads, to the sink of `statistics_sink`."""
    for name, value in moments.values.items():
        sink.write(name, 0, value)
    sink.write(TOTAL, 0, np.array([moments.total]))


def statistics_sink(folder: Path, plan: MergeLayout) -> FileSink:
    """Where the statistics of a state go."""
    entries = {name: TensorEntry("F64", (plan.entries[name].size,)) for name in plan.statistics}
    return FileSink(folder / _STATISTICS, {**entries, TOTAL: TensorEntry("F64", (1,))})
