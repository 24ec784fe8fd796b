"""The records of timelines, read from git all at once: manifests, metrics, params and which node wrote what."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from tasks import layout, nodes, yaml
from tasks.errors import UserError, first_problem
from tasks.grid.cells import Cell
from tasks.record import Manifest, State, compatibility_of, heads_of, metrics_of, read_manifest, timeline_names
from tasks.record import lineage as recorded_lineage
from tasks.scores import ROLES
from tasks.storage import git

_FILES = ("manifest.json", "metrics.json", "params.yaml", "dvc.yaml")


RAW = layout.RAW
"""The inputs that are fetched raw."""


@dataclass(frozen=True)
class Record:
    """What one state says of itself."""

    state: State
    manifest: Manifest
    metrics: dict[str, Any]
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
    records = {cell: [_record(state, texts) for state in each] for cell, each in lineages.items()}
    with_heads = [one for each in records.values() for one in each if one.params["evaluate"].get("heads")]
    scores = git.show_all(project, [f"{one.state.commit}:{layout.HEADS_METRICS}" for one in with_heads])
    for one in with_heads:
        one.metrics["heads"] = _heads(one, scores[f"{one.state.commit}:{layout.HEADS_METRICS}"])
    measured = [one for each in records.values() for one in each if one.params["evaluate"].get("compatibility")]
    texts = git.show_all(project, [f"{one.state.commit}:{layout.COMPATIBILITY_METRICS}" for one in measured])
    for one in measured:
        text = texts[f"{one.state.commit}:{layout.COMPATIBILITY_METRICS}"]
        one.metrics["compatibility"] = _compatibility(one, text)
    return records


def _compatibility(record: Record, text: str) -> dict[str, Any]:
    scores = compatibility_of(text, record.state.tag)
    _require_named(record, layout.COMPATIBILITY_METRICS, {*scores["recall@1"], *scores["recall@5"]})
    return scores


def _heads(record: Record, text: str) -> dict[str, Any]:
    scores = heads_of(text, record.state.tag)
    names = {name for head in scores.values() for top1 in head["top1"].values() for name in top1}
    _require_named(record, layout.HEADS_METRICS, names)
    return scores


def _require_named(record: Record, file: str, names: Collection[str]) -> None:
    """Raises:
    UserError: a file of scores names a test set that the params of the state do not.
    """
    if lacking := set(names) - {one["name"] for role in ROLES for one in record.params["evaluate"][role]}:
        raise _contradiction(record.state, f"{file} names the set {min(lacking)}, and params.yaml does not")


def _contradiction(state: State, why: str) -> UserError:
    return UserError(f"{state.tag}: its files contradict each other ({why}); `chronomerge doctor` says more")


def lineage(project: Path, timeline: str) -> list[State]:
    """The states that a timeline's newest state goes back to, step 0 first.

    Raises:
        UserError: it has none.
    """
    states = recorded_lineage(project, timeline)
    if not states:
        others = ", ".join(timeline_names(project)) or "none; in a clone, `git fetch --tags` brings them"
        raise UserError(f"timeline {timeline!r} has no states to report on (recorded timelines: {others})")
    return states


class _Set(TypedDict):
    name: str


class _Evaluate(TypedDict):
    adaptation: list[_Set]
    retention: list[_Set]


class _Technique(TypedDict):
    name: str


class _Time(TypedDict):
    init: Literal["zs", "ft", "ema"]
    deploy: Literal["ft", "ema", "all", "routed"]
    technique: _Technique


class _Params(TypedDict):
    seed: int
    time: _Time
    evaluate: _Evaluate


_PARAMS = TypeAdapter(_Params)
"""What the report reads of ``params.yaml``. The rest is not checked: an older state may have settings of its time."""


def _record(state: State, texts: Mapping[str, str]) -> Record:
    manifest, metrics, params, pipeline = (texts[f"{state.commit}:{name}"] for name in _FILES)
    try:
        outputs = _outputs(pipeline)
    except UserError as error:
        raise UserError(f"{state.tag}: {error}") from None
    record = Record(
        state, read_manifest(manifest, state.tag), metrics_of(metrics, state.tag), _params(params, state), outputs
    )
    routing = record.metrics.get("routing", {})
    if lacking := record.manifest.seconds.keys() - outputs:
        raise _contradiction(state, f"manifest.json names the node {min(lacking)}, and dvc.yaml does not")
    made = [path for node in record.manifest.seconds for path in outputs[node]]
    if lacking := {*RAW, *made} - record.manifest.contents.keys():
        raise _contradiction(state, f"manifest.json does not name {min(lacking)}")
    _require_named(record, "metrics.json", _sets(record.metrics))
    if lacking := routing.get("accuracy", {}).keys() - routing.get("expert", {}).keys():
        raise _contradiction(state, f"metrics.json has a routing accuracy of {min(lacking)}, and no expert of it")
    return record


def _sets(metrics: Mapping[str, Any]) -> set[str]:
    """The test sets that a ``metrics.json`` names."""
    routing, own = metrics.get("routing", {}), metrics.get("expert", {})
    by_set = [metrics.get(key, {}) for key in ("top1", "recall", "top5", "mean_per_class_recall", "share")]
    by_set += [routing.get(key, {}) for key in ("images", "expert", "accuracy", "oracle")]
    return {name for one in by_set for name in one} | ({own["set"]} if own else set())


def params_of(state: State) -> Mapping[str, Any]:
    """The ``params.yaml`` of a state.

    Raises:
        UserError: it is damaged, or lacks what a report reads of it.
    """
    return _params(git.show(state.project, state.commit, "params.yaml"), state)


def _params(text: str, state: State) -> Mapping[str, Any]:
    damaged = f"{state.tag}: params.yaml is damaged"
    try:
        content: Mapping[str, Any] = yaml.load(text)
        _PARAMS.validate_python(content)
    except yaml.YAMLError as error:
        raise UserError(f"{damaged} ({str(error).splitlines()[0]}); `chronomerge doctor` says more") from None
    except ValidationError as error:
        raise UserError(f"{damaged} ({first_problem(error)}); `chronomerge doctor` says more") from None
    return content


@lru_cache(maxsize=8)
def _outputs(pipeline: str) -> Mapping[str, tuple[str, ...]]:
    """What the stages of a ``dvc.yaml`` write; states made by the same code share it."""
    return {node.name: node.outputs for node in nodes.parse(pipeline, "dvc.yaml").values()}
