"""One tidy table of all that timelines have recorded: a row for each value of each metric at each step.

| metric | dataset | unit |
|---|---|---|
| ``top1`` | an evaluation set | percent |
| ``image_to_text_recall@K``, ``text_to_image_recall@K`` | a set of images and texts | percent |
| ``score`` | an evaluation set | percent: top-1, or the mean recall@5 of both ways (FoMo-in-Flux) |
| ``top5``, ``mean_per_class_recall`` | a set with classes | percent; not in older states |
| ``evaluated_share`` | a set of which not all samples were evaluated | the share of its samples, below 1 |
| ``A_KA``, ``A_ZS``, ``geometric_mean`` | | percent |
| ``head:NAME@SHOTS`` | an evaluation set | percent: top-1 of a head, where it is scored |
| ``head_forgetting:NAME@SHOTS`` | | percentage points; as ``forgetting``, at the head's largest number of shots |
| ``fit:A_KA``, ``fit:A_ZS``, ``fit:geometric_mean`` | a value that `fit` tried | percent, on held-out samples |
| ``fit_value`` | the setting that `fit` chose | its value |
| ``gallery_recall@K:STEP`` | an evaluation set | percent: recall@K of this state's queries in the gallery of STEP |
| ``compatible_pairs`` | | percent of the pairs of states up to here; see `tasks.evaluate.compatibility` |
| ``compatibility_drop`` | | percentage points; the largest over the galleries of earlier states |
| ``routed_to:ROUTE`` | an evaluation set | percent of its images that go to an expert (`deploy: routed`) |
| ``routing_accuracy:ROUTE`` | a set named after an arrival so far | percent of its images that go to its own expert |
| ``routing_accuracy`` | | percent: the mean over these sets |
| ``oracle``, ``oracle_A_KA`` | such a set; | percent: with its own expert; see `tasks.evaluate.metrics.routing` |
| ``routed_bytes`` | | of the router and all deltas |
| ``ACC``, ``BWT``, ``FWT``, ``forgetting`` | | percentage points; see `tasks.report.metrics` |
| ``Transfer``, ``Average``, ``Last`` | | percent (MTIL); see `tasks.report.metrics` |
| ``expert_score`` | the set of the arrival's name | percent: the step's own expert on it; not in older states |
| ``normalized_accuracy`` | | percent of each arrival's own expert's score, mean over arrivals so far; likewise |
| ``normalized_retention`` | | percent of the base's score, mean over retention sets; see `tasks.report.metrics` |
| ``left_out_of_normalized`` | a set that either leaves out | the base's or the expert's score, under twice chance |
| ``budget_steps``, ``budget_samples``, ``budget_flops``, ``budget_mafs`` | | what the step's training spent |
| ``seconds``, ``seconds:NODE`` | | wall time of the runs that made the outputs |
| ``elapsed`` | | seconds on the clock from the step's start until its outputs were in the store; not in older states |
| ``recorded_at`` | | when that was, in seconds since 1970 (UTC) |
| ``reused:NODE`` | | 1 where an earlier row's run made the same outputs, so that nothing ran; else 0 |
| ``bytes_new``, ``bytes_total`` | | what the step added to the store, and all it refers to; each content once |
| ``bytes:NODE`` | | files and folders that it wrote and that no earlier row has; of ``inputs``: that were fetched |
| ``expert_bytes``, ``expert_bytes_decoded`` | | of a coded expert: as it is stored, and as safetensors |
| ``expert_lost`` | | percent of the size of its task vector that its codec lost, ‖θ − θ̂‖ / ‖θ − θ_0‖ |
| ``task_vector_norm`` | | ‖θ_t − θ_0‖ of the step's expert |
| ``task_vector_cosine``, ``_angle``, ``_distance`` | another arrival | to that arrival's task vector; degrees |
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

from tasks.grid.cells import Cell
from tasks.report import metrics
from tasks.report.ledger import Ledger
from tasks.report.records import Record, Records
from tasks.report.vectors import Geometry
from tasks.scores import MEANS, ROLES, scores

CELL = ["timeline", "init", "deploy", "technique", "seed", "variant", "reference"]
COLUMNS = [*CELL, "step", "arrival", "tag", "metric", "dataset", "role", "value"]

_STREAM = {
    "ACC": metrics.average_accuracy,
    "BWT": metrics.backward_transfer,
    "FWT": metrics.forward_transfer,
    "forgetting": metrics.forgetting,
    "Transfer": metrics.transfer,
    "Average": metrics.average,
    "Last": metrics.last,
}

TidyRow = tuple[str, str, str, float]
"""Metric, data set, role, value."""


def table(records: Records, geometry: Mapping[str, Geometry]) -> pd.DataFrame:
    """The tidy table of some cells, with `COLUMNS`; ``value`` is float64.

    ``geometry`` is that of the task vectors of timelines, by name, where it is known.
    """
    ledger = Ledger()
    rows = [row for cell, lineage in records.items() for row in _of_cell(cell, lineage, geometry, ledger)]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": np.float64})


def _of_cell(
    cell: Cell, lineage: Sequence[Record], geometry: Mapping[str, Geometry], ledger: Ledger
) -> Iterator[tuple[Any, ...]]:
    named = tuple(getattr(cell, column) for column in CELL)
    scored = [scores(record.metrics) for record in lineage]
    streamed = _of_stream(lineage, scored) | _of_heads(lineage)
    vectors = geometry.get(cell.timeline)
    for index, record in enumerate(lineage):
        rows = [
            *_measured(record, scored[index]),
            *((name, "", "", values[index]) for name, values in streamed.items() if math.isfinite(values[index])),
            *_fitted(record),
            *_normalized(lineage, scored, index),
            *_of_experts(lineage, scored, index),
            *_spent(record),
            *ledger.rows(record),
            *(_vectors(vectors, record.state.step) if vectors else ()),
        ]
        place = (record.state.step, record.manifest.arrival or "", record.state.tag)
        yield from ((*named, *place, *row) for row in rows)


def _measured(record: Record, scored: Mapping[str, float]) -> Iterator[TidyRow]:
    roles = _roles(record)
    for name, value in record.metrics["top1"].items():
        yield "top1", name, roles[name], value
    for name, ways in record.metrics.get("recall", {}).items():
        for way, at in ways.items():
            yield from ((f"{way}_recall@{k}", name, roles[name], value) for k, value in at.items())
    for name, value in scored.items():
        yield "score", name, roles[name], value
    for head, its in record.metrics.get("heads", {}).items():
        for shots, top1 in its["top1"].items():
            yield from ((f"head:{head}@{shots}", name, roles[name], value) for name, value in top1.items())
    yield from _compatibility(record, roles)
    yield from _routing(record, roles)
    for metric, key in (("top5", "top5"), ("mean_per_class_recall",) * 2, ("evaluated_share", "share")):
        for name, value in record.metrics.get(key, {}).items():
            yield metric, name, roles[name], value
    for name in MEANS:
        yield name, "", "", record.metrics[name]


def _fitted(record: Record) -> Iterator[TidyRow]:
    fit = record.manifest.fit
    if fit is None or fit.setting is None or fit.value is None:
        return
    for point in fit.curve:
        scored = (point.accumulation, point.retention, point.geometric_mean)
        yield from ((f"fit:{name}", f"{point.value:.6g}", "", value) for name, value in zip(MEANS, scored, strict=True))
    yield "fit_value", fit.setting, "", fit.value


def _compatibility(record: Record, roles: Mapping[str, str]) -> Iterator[TidyRow]:
    scores = record.metrics.get("compatibility", {})
    for k in (1, 5):
        for name, row in scores.get(f"recall@{k}", {}).items():
            yield from ((f"gallery_recall@{k}:{step}", name, roles[name], value) for step, value in row.items())
    for metric, key in (("compatible_pairs", "compatible"), ("compatibility_drop", "drop")):
        if (value := scores.get(key)) is not None:
            yield metric, "", "", value


def _routing(record: Record, roles: Mapping[str, str]) -> Iterator[TidyRow]:
    routing = record.metrics.get("routing")
    if not routing:
        return
    routes = list(dict.fromkeys(route for went in routing["images"].values() for route in went))
    for name, went in routing["images"].items():
        total = sum(went.values())
        yield from ((f"routed_to:{route}", name, roles[name], 100 * went.get(route, 0) / total) for route in routes)
    for name, value in routing["accuracy"].items():
        yield f"routing_accuracy:{routing['expert'][name]}", name, roles[name], value
    yield from (("oracle", name, roles[name], value) for name, value in routing["oracle"].items())
    yield "oracle_A_KA", "", "", routing["oracle_A_KA"]
    if routing["mean_accuracy"] is not None:
        yield "routing_accuracy", "", "", routing["mean_accuracy"]
    if record.manifest.routed:
        yield "routed_bytes", "", "", record.manifest.routed.bytes


def _of_stream(lineage: Sequence[Record], scored: Sequence[Mapping[str, float]]) -> dict[str, metrics.Values]:
    """Metrics over the arrivals that have an evaluation set of their name; the others take no part."""
    arrived = {record.manifest.arrival or "": step for step, record in enumerate(lineage) if step}
    names = [name for name in arrived if any(name in each for each in scored)]
    if not names:
        return {}
    accuracy = np.array([[each.get(name, math.nan) for name in names] for each in scored])
    at = np.array([arrived[name] for name in names])
    return {metric: function(accuracy, at) for metric, function in _STREAM.items()}


def _of_heads(lineage: Sequence[Record]) -> dict[str, metrics.Values]:
    """Forgetting of each head of the newest step, at its largest number of shots."""
    streamed = {}
    for head, its in lineage[-1].metrics.get("heads", {}).items():
        for shots in list(its["top1"])[-1:]:
            scored = [
                record.metrics.get("heads", {}).get(head, {}).get("top1", {}).get(shots, {}) for record in lineage
            ]
            if "forgetting" in (values := _of_stream(lineage, scored)):
                streamed[f"head_forgetting:{head}@{shots}"] = values["forgetting"]
    return streamed


def _normalized(lineage: Sequence[Record], scored: Sequence[Mapping[str, float]], step: int) -> Iterator[TidyRow]:
    """Retention as a percentage of the base's, over the sets on which the base is at twice chance at least."""
    base = lineage[0].metrics
    role = ROLES[1]
    names = [one["name"] for one in lineage[0].params["evaluate"][role] if one["name"] in scored[step]]
    reference = np.array([scored[0][name] for name in names])
    chance = np.array([_chance(base, name) for name in names])
    counted = reference >= 2 * chance
    value = metrics.normalized(np.array([[scored[step][name] for name in names]]), reference, counted)
    if np.isfinite(value[0]):
        yield "normalized_retention", "", "", float(value[0])
    for name, score, limit, usable in zip(names, reference, chance, counted, strict=True):
        if not usable and math.isfinite(limit):
            yield "left_out_of_normalized", name, role, score


def _of_experts(lineage: Sequence[Record], scored: Sequence[Mapping[str, float]], step: int) -> Iterator[TidyRow]:
    """Accuracy on the arrivals so far as a percentage of their own experts', where these are at twice chance at least.

    Both are of the same samples: where the deployed model was evaluated on a share, the expert's score is of that too.
    """
    measured, roles = lineage[step].metrics, _roles(lineage[step])
    own = [(record, record.metrics["expert"]) for record in lineage[1 : step + 1] if "expert" in record.metrics]
    own = [(record, one) for record, one in own if one["set"] in scored[step]]
    if step and (one := measured.get("expert")):
        yield "expert_score", one["set"], roles[one["set"]], one["score"]
    if not own:
        return
    names = [one["set"] for _, one in own]
    reference = np.array([
        one.get("score_of_share", math.nan) if one["set"] in measured.get("share", {}) else one["score"]
        for _, one in own
    ])  # fmt: skip
    chance = np.array([_chance(record.metrics, one["set"]) for record, one in own])
    counted = reference >= 2 * chance
    value = metrics.normalized(np.array([[scored[step][name] for name in names]]), reference, counted)
    if np.isfinite(value[0]):
        yield "normalized_accuracy", "", "", float(value[0])
    for name, score, usable in zip(names, reference, counted, strict=True):
        if not usable and math.isfinite(score):
            yield "left_out_of_normalized", name, roles[name], float(score)


def _roles(record: Record) -> dict[str, str]:
    return {each["name"]: role for role in ROLES for each in record.params["evaluate"][role]}


def _chance(measured: Mapping[str, Any], name: str) -> float:
    """What guessing scores, in percent; NaN for states that do not say how many candidates there are."""
    if name in measured.get("classes", {}):
        return float(100 / max(1, measured["classes"][name]))
    if name in measured.get("recall", {}) and name in measured.get("size", {}):
        return float(min(100.0, 500 / max(1, measured["size"][name])))  # recall@5
    return math.nan


def _spent(record: Record) -> Iterator[TidyRow]:
    spent = record.manifest.budget.spent
    for unit in ("steps", "samples", "flops", "mafs"):
        if (value := getattr(spent, unit)) is not None:
            yield f"budget_{unit}", "", "", value
    yield "seconds", "", "", sum(record.manifest.seconds.values())
    if record.manifest.elapsed is not None:
        yield "elapsed", "", "", record.manifest.elapsed
        yield "recorded_at", "", "", datetime.fromisoformat(record.manifest.recorded.at).timestamp()
    yield "bytes_new", "", "", record.manifest.bytes.new
    yield "bytes_total", "", "", record.manifest.bytes.total
    if coded := record.manifest.coded:
        yield "expert_bytes", "", "", record.manifest.stored_expert.size
        yield "expert_bytes_decoded", "", "", coded.decoded.size
        yield "expert_lost", "", "", 100 * coded.error


def _vectors(geometry: Geometry, step: int) -> Iterator[TidyRow]:
    if step not in geometry.steps:
        return
    i = geometry.steps.index(step)
    yield "task_vector_norm", "", "", geometry.norms[i]
    for j, other in enumerate(geometry.arrivals):
        if j != i:
            yield "task_vector_cosine", other, "", geometry.cosines[i, j]
            yield "task_vector_angle", other, "", geometry.angles[i, j]
            yield "task_vector_distance", other, "", geometry.distances[i, j]
