"""The node ``compatibility``, as ``dvc.yaml`` declares it; it runs where ``evaluate.compatibility`` is set.

It asks of the deployed model whether indexes that earlier states have made still work: recall@k of its queries in each
state's gallery. A gallery is kept as it was embedded, and handed on from step to step.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from tasks.errors import UserError, first_problem
from tasks.evaluate.crossing import KS, Crossing, Shares, crossing
from tasks.evaluate.memory import keeping_memory
from tasks.evaluate.metrics import DIGITS
from tasks.model import checkpoints, models
from tasks.model.datasets import Dataset
from tasks.params import Params, Settings
from tasks.progress import Progress, silent
from tasks.storage import atomic

MODEL = Path("data/history/model")
DEPLOYED = Path("data/step/deployed.safetensors")
SETS = Path("data/step/evaluation")
GALLERIES = Path("data/step/compatibility")
"""Galleries of this state and of those before it, ``0003.safetensors``, and `PAIRS`."""
PAST = Path("data/history/compatibility")
PAIRS = "pairs.json"
"""Step → earlier step → whether the pair is compatible, as it was found at that step."""
METRICS = Path("compatibility.json")
KEY = "gallery"
_PAIRS = TypeAdapter(dict[int, dict[int, bool]])


class _Note(Settings):
    """What a gallery's file says of each set: a hash of its images and labels, and the recall of the state itself."""

    sets: dict[str, tuple[str, Shares]]


@dataclass(frozen=True)
class _Gallery:
    features: Mapping[str, torch.Tensor]
    note: _Note


@keeping_memory()
def run(project: Path, params: Params, progress: Progress = silent) -> None:
    """Write ``compatibility.json``, the galleries, and which pairs of states are compatible.

    Raises:
        UserError: damaged weights, data or galleries.
    """
    assert params.step is not None
    models.configure(params.threads)
    folder, past = project / GALLERIES, project / PAST
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    earlier = sorted(past.glob("*.safetensors"))
    for path in earlier:
        shutil.copyfile(path, folder / path.name)
    own, queries, sets, left_out = _encode(project, params, progress)
    rows = {name: {str(params.step): shares} for name, (_, shares) in own.note.sets.items()}
    reference = params.deploy.reference_step if params.deploy and params.deploy.compatible_with else 0
    drops: dict[int, float] = {}
    for i, path in enumerate(earlier):
        before, step = _read(path), int(path.stem)
        recalls: dict[str, tuple[Shares, Shares]] = {}
        for name, one in sets.items():
            digest, its = before.note.sets.get(name, ("", {}))
            if digest == own.note.sets[name][0]:
                recalls[name] = one.recall(queries[name], before.features[name]), its
                rows[name] = {str(step): recalls[name][0], **rows[name]}
        if recalls and step >= reference:
            drops[step] = round(fmean(its["1"] - cross["1"] for cross, its in recalls.values()), DIGITS) + 0.0
        progress("compatibility", i + 1, len(earlier), f"gallery of step {step}")
    _save(folder / f"{params.step:04d}.safetensors", own)
    pairs = _pairs(past / PAIRS)
    pairs[params.step] = {step: drop <= 0 for step, drop in drops.items()}
    atomic.write(folder / PAIRS, json.dumps(pairs, indent=1) + "\n")
    for name, why in left_out.items():
        progress("note:", 1, 1, f"compatibility: {name} is not measured: {why}")
    content = _summary(rows, drops, pairs, reference, left_out)
    atomic.write(project / METRICS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _summary(
    rows: Mapping[str, Mapping[str, Shares]], drops: Mapping[int, float], pairs: Mapping[int, Mapping[int, bool]],
    reference: int, left_out: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """The content of ``compatibility.json``; steps in rising order."""
    recall = {
        f"recall@{k}": {
            name: {step: round(row[step][str(k)], DIGITS) for step in sorted(row, key=int)}
            for name, row in rows.items()
        }
        for k in KS
    }
    counted = [holds for its in pairs.values() for s, holds in its.items() if s >= reference]
    content: dict[str, Any] = {
        **recall,
        "from": reference,
        "drop": max(drops.values()) if drops else None,
        "drops": {str(step): drop for step, drop in drops.items()},
        "pairs": len(counted),
        "compatible": round(100 * sum(counted) / len(counted), DIGITS) if counted else None,
    }
    return content | ({"left_out": dict(left_out)} if left_out else {})


def _encode(
    project: Path, params: Params, progress: Progress
) -> tuple[_Gallery, dict[str, torch.Tensor], dict[str, Crossing], dict[str, str]]:
    """The deployed model's gallery and queries of each set that can be measured; and why others cannot."""
    settings = params.evaluate
    chosen = [
        one.name for one in settings.sets if settings.compatibility == "all" or one.name in settings.compatibility
    ]
    tokenize, preprocess = models.tokenizer(project / MODEL), models.preprocess(project / MODEL)
    sets, left_out = {}, {}
    for name in chosen:
        one = crossing(name, Dataset(project / SETS / name), tokenize)
        if one.queries:
            sets[name] = one
        else:
            left_out[name] = "none of its classes has two images"
    model = models.build(project / MODEL)
    models.load_weights(model, checkpoints.load(project / DEPLOYED), project / DEPLOYED)
    model.to(models.device()).eval()
    galleries, queries, notes = {}, {}, {}
    for name, one in sets.items():
        galleries[name] = one.gallery(
            model, preprocess, settings.batch_size,
            partial(_report, progress, len(one.images), name), settings.precision,
        )  # fmt: skip
        queries[name] = one.embedded_queries(model, galleries[name], settings.batch_size, settings.precision)
        notes[name] = _digest(one), one.recall(queries[name], galleries[name])
    return _Gallery(galleries, _Note(sets=notes)), queries, sets, left_out


def _report(progress: Progress, total: int, name: str, done: int) -> None:
    progress("compatibility", done, total, name)


def _digest(one: Crossing) -> str:
    """Of all that a recall depends on beside the features: the images and what is right for which query."""
    digest = hashlib.sha256()
    for row in one.images.tolist():
        digest.update(np.ascontiguousarray(one.data.images[row]).data)
    right = one.labels.numpy() if one.labels is not None else one.pairs.right if one.pairs else np.zeros(0)
    digest.update(np.ascontiguousarray(right).tobytes())
    if one.pairs:
        digest.update(one.pairs.tokens.numpy().tobytes())
    return digest.hexdigest()


def _save(path: Path, gallery: _Gallery) -> None:
    tensors = dict(gallery.features) or {"none": torch.zeros(0)}
    checkpoints.save(path, tensors, {KEY: gallery.note.model_dump_json()})


def _read(path: Path) -> _Gallery:
    features = checkpoints.load(path)
    try:
        note = _Note.model_validate_json(checkpoints.metadata(path)[KEY])
    except (KeyError, ValidationError):
        raise UserError(f"{path}: not a gallery of a state; `chronomerge doctor` says more") from None
    if lacking := sorted(note.sets.keys() - features.keys()):
        raise UserError(f"{path}: lacks the features of {lacking[0]!r}; `chronomerge doctor` says more")
    return _Gallery(features, note)


def _pairs(path: Path) -> dict[int, dict[int, bool]]:
    if not path.exists():
        return {}
    try:
        return _PAIRS.validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path}: damaged ({first_problem(error)}); `chronomerge doctor` says more") from None
