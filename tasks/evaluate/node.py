"""The node ``evaluate`` on a project folder, as ``dvc.yaml`` declares it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tasks.errors import UserError
from tasks.evaluate import metrics, predictions, prompts, retrieval, shares, zeroshot
from tasks.evaluate.memory import keeping_memory
from tasks.evaluate.metrics import Accuracy, Recall
from tasks.model import checkpoints, models
from tasks.model.datasets import Dataset
from tasks.params import EvaluationSet, Params
from tasks.progress import Progress, silent
from tasks.storage import atomic

MODEL = Path("data/history/model")
DEPLOYED = Path("data/step/deployed.safetensors")
SETS = Path("data/step/evaluation")
PREDICTIONS = Path("data/step/predictions")
METRICS = Path("metrics.json")


@dataclass(frozen=True)
class Scores:
    """Results of test sets by name."""

    nearest: dict[str, np.ndarray]
    """Of sets with classes: for each evaluated sample the nearest classes (see `zeroshot.predict`)."""
    recall: dict[str, Recall]
    """Of sets without: recall@k in both ways, in percent."""


def evaluate(project: Path, params: Params, progress: Progress = silent) -> None:
    """Score the deployed model on every test set.

    Writes ``metrics.json`` (A_KA, A_ZS, their geometric mean, and the scores of each set) and ``data/step/predictions``
    (see `tasks.evaluate.predictions`).

    Raises:
        UserError: as `measure`.
    """
    write(project, params, measure(project, params, params.evaluate.sets, progress))


def write(project: Path, params: Params, scores: Scores) -> None:
    """Write ``metrics.json`` and the predictions from the results of all sets."""
    settings = params.evaluate
    accuracy: dict[str, Accuracy] = {}
    predicted: dict[str, np.ndarray] = {}
    pairs: dict[str, int] = {}
    for one in settings.sets:
        data = Dataset(project / SETS / one.name)
        if one.name in scores.recall:
            pairs[one.name] = len(data)
            continue
        share, nearest = shares.share_of(settings, one.name), scores.nearest[one.name]
        rows = shares.drawn(one.name, data, share)
        accuracy[one.name] = Accuracy.of(nearest, data.labels[rows], len(data.card.classes), share)
        predicted[one.name] = np.full(len(data), predictions.NOT_EVALUATED, np.int32)
        predicted[one.name][rows] = nearest[:, 0]
    summary = metrics.summary(
        accuracy,
        scores.recall,
        pairs,
        [one.name for one in settings.adaptation],
        [one.name for one in settings.retention],
    )
    predictions.write(project / PREDICTIONS, predicted)
    atomic.write(project / METRICS, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


@keeping_memory()
def measure(project: Path, params: Params, chosen: Sequence[EvaluationSet], progress: Progress = silent) -> Scores:
    """The scores of the deployed model on some test sets; the score of one does not depend on the others.

    Raises:
        UserError: damaged weights or data, or a test set with neither classes nor pairs; the message names it.
    """
    models.configure(params.threads)
    batch_size, precision = params.evaluate.batch_size, params.evaluate.precision
    tokenize = models.tokenizer(project / MODEL)
    sets = {one.name: Dataset(project / SETS / one.name) for one in chosen}
    pairs = {name: retrieval.pairs(name, data, tokenize) for name, data in sets.items() if not _labelled(name, data)}
    texts = {
        one.name: zeroshot.prompts(one.name, sets[one.name].card.classes, templates_of(one, sets[one.name]))
        for one in chosen
        if one.name not in pairs
    }
    tokens = {name: zeroshot.tokens(name, own, tokenize) for name, own in texts.items()}
    preprocess = models.preprocess(project / MODEL)
    model = models.build(project / MODEL)
    models.load_weights(model, checkpoints.load(project / DEPLOYED), project / DEPLOYED)
    model.to(models.device()).eval()

    classifiers: dict[tuple[tuple[str, ...], ...], torch.Tensor] = {}
    scores, done = Scores({}, {}), 0
    rows = {
        name: shares.drawn(name, data, shares.share_of(params.evaluate, name))
        for name, data in sets.items()
        if name not in pairs
    }
    work = {name: len(pairs[name] if name in pairs else rows[name]) for name in sets}
    for name, data in sets.items():
        on_done = partial(_report, progress, done, sum(work.values()), name)
        if name in pairs:
            scores.recall[name] = retrieval.recall(
                model, data.images, pairs[name], preprocess, batch_size, on_done, precision
            )
        else:
            own = tuple(map(tuple, texts[name]))
            if own not in classifiers:  # sets that share class list and templates share the classifier
                classifiers[own] = zeroshot.classifier(model, tokens[name], batch_size, precision)
            scores.nearest[name] = zeroshot.predict(
                model, data.images, rows[name], classifiers[own], preprocess, batch_size, on_done, precision
            )
        done += work[name]
    return scores


def _report(progress: Progress, before: int, total: int, name: str, done: int) -> None:
    progress("evaluate", before + done, total, name)


def templates_of(one: EvaluationSet, data: Dataset) -> tuple[str, ...]:
    """Those that the params say, or else those of the data."""
    return prompts.templates(one.prompt or data.card.templates or data.card.prompt)


def _labelled(name: str, data: Dataset) -> bool:
    """Whether every sample of a test set has a class, or none has.

    Raises:
        UserError: some samples have one and others none.
    """
    without = (data.labels < 0) | (data.labels >= len(data.card.classes))
    if (data.labels < 0).all():
        return False
    if without.any():
        raise UserError(
            f"evaluation set {name!r}: sample {data.ids[int(without.argmax())]!r} has no class of the set, and others"
            " have; zero-shot classification needs a class for every sample, retrieval none"
        )
    return True
