"""What changed between two states: params, data, code, what computed, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks import layout
from tasks.record.state import State
from tasks.scores import MEANS
from tasks.storage.cache import Entry
from tasks.storage.git import git

Change = tuple[Any, Any]
"""Before and after; None where there is nothing."""


@dataclass(frozen=True)
class FileChange:
    """A changed file of the code: lines added and removed, None for a binary file."""

    path: str
    added: int | None
    removed: int | None


@dataclass(frozen=True)
class Difference:
    """Two states side by side; only what differs is listed."""

    old: State
    new: State
    params: Mapping[str, Change]
    """Key, dotted → values. The step and what arrives at it are left out: they are what a state is."""
    data: Mapping[str, tuple[Entry | None, Entry | None]]
    """Path of an input or output → content."""
    commits: Change
    """The code commits that the states stand on."""
    files: tuple[FileChange, ...]
    """Of the code as it ran, whether it was committed or not."""
    machine: Mapping[str, Change]
    """Versions, host, and the device and threads of each node."""
    metrics: Mapping[str, Change]
    """Every number of both, changed or not."""


def compare(old: State, new: State) -> Difference:
    """Compare two states, of one timeline or of two."""
    return Difference(
        old,
        new,
        _changes(_flat(_settings(old)), _flat(_settings(new))),
        _changes(old.entries, new.entries),
        (old.manifest.code.commit, new.manifest.code.commit),
        _files(old, new),
        _changes(_machine(old), _machine(new)),
        _side_by_side(_numbers(old), _numbers(new)),
    )


def _settings(state: State) -> dict[str, Any]:
    return {key: value for key, value in state.params.items() if key not in ("step", "arrival")}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as dotted keys; what has a name in a list goes by it."""
    if isinstance(value, dict):
        parts = {str(key): part for key, part in value.items()}
    elif isinstance(value, list):
        named = all(isinstance(part, dict) and "name" in part for part in value)
        parts = {part["name"] if named else str(index): part for index, part in enumerate(value)}
    else:
        return {path: value}
    if not parts:
        return {path: value}
    return {
        key: leaf for name, part in parts.items() for key, leaf in _flat(part, f"{path}.{name}".lstrip(".")).items()
    }


def _side_by_side(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Change]:
    return {key: (old.get(key), new.get(key)) for key in (*old, *(key for key in new if key not in old))}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Change]:
    return {key: (was, now) for key, (was, now) in _side_by_side(old, new).items() if was != now}


def _files(old: State, new: State) -> tuple[FileChange, ...]:
    """A state's tree is the whole project; without what recording adds, it is the code."""
    without = [f":(exclude){path}" for path in layout.RECORDED if path != "dvc.yaml"]
    rows = git(
        old.project,
        "diff",
        "--no-ext-diff",
        "--no-textconv",
        "--numstat",
        "-z",
        "--no-renames",
        "--end-of-options",
        old.commit,
        new.commit,
        "--",
        ".",
        *without,
    )
    changes = []
    for row in rows.split("\0")[:-1]:
        added, removed, path = row.split("\t", 2)
        changes.append(FileChange(path, *(None if count == "-" else int(count) for count in (added, removed))))
    return tuple(changes)


def _machine(state: State) -> dict[str, Any]:
    manifest = state.manifest
    devices = {
        f"{node}: {name}": fact for node, facts in manifest.device.items() for name, fact in facts.as_dict().items()
    }
    return {**manifest.versions, "host": manifest.recorded.host, **devices}


def _numbers(state: State) -> dict[str, float]:
    metrics = state.metrics
    totals = {key: metrics[key] for key in MEANS}
    recall = {
        f"{name} {way}@{k}": value
        for name, ways in metrics.get("recall", {}).items()
        for way, at in ways.items()
        for k, value in at.items()
    }
    return {**totals, **metrics["top1"], **recall}
