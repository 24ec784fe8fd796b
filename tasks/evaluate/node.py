"""The node ``evaluate`` on a project folder, as ``dvc.yaml`` declares it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tasks.errors import UserError
from tasks.evaluate import metrics, predictions, prompts, retrieval, routing, shares, zeroshot
from tasks.evaluate.memory import keeping_memory
from tasks.evaluate.metrics import Accuracy, Recall
from tasks.evaluate.routing import Part, Routing
from tasks.model import checkpoints, coded, models
from tasks.model.datasets import Dataset
from tasks.params import EvaluationSet, Params
from tasks.progress import Progress, silent
from tasks.storage import atomic

MODEL = Path("data/history/model")
DEPLOYED = Path("data/step/deployed.safetensors")
EXPERT = Path("data/step/expert")
"""Without the suffix, which says whether it is coded."""
BASE = Path("data/history/weights/base.safetensors")
ROUTED = Path("data/step/routed")
"""With ``time.deploy: routed``, in place of the deployed model."""
SETS = Path("data/step/evaluation")
PREDICTIONS = Path("data/step/predictions")
METRICS = Path("metrics.json")

Classifiers = dict[tuple[tuple[str, ...], ...], torch.Tensor]
"""The prompts of each class → the classifier."""


@dataclass(frozen=True)
class Scores:
    """Results of test sets by name."""

    nearest: dict[str, np.ndarray]
    """Of sets with classes: for each evaluated sample the nearest classes (see `zeroshot.predict`)."""
    recall: dict[str, Recall]
    """Of sets without: recall@k in both ways, in percent."""
    own: dict[str, np.ndarray | Recall]
    """The same of the step's own expert on the set of the arrival's name, of all its samples; else empty."""
    routing: dict[str, Routing] = field(default_factory=dict)
    """Where the images went, with ``time.deploy: routed``."""


def evaluate(project: Path, params: Params, progress: Progress = silent) -> None:
    """Score the deployed model on every test set, and the step's own expert on the set of the arrival's name.

    With ``time.deploy: routed`` each image is scored by its route (`tasks.evaluate.routing`).

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
    own: metrics.OwnScore | None = None
    oracle: dict[str, float] = {}
    for one in settings.sets:
        data = Dataset(project / SETS / one.name)
        score = scores.own.get(one.name)
        if one.name in scores.recall:
            pairs[one.name] = len(data)
            if isinstance(score, dict):
                own = metrics.OwnScore(one.name, metrics.of_recall(score))
            if one.name in scores.routing and isinstance(by_oracle := scores.routing[one.name].oracle, dict):
                oracle[one.name] = metrics.of_recall(by_oracle)
            continue
        share, nearest = shares.share_of(settings, one.name), scores.nearest[one.name]
        rows = shares.drawn(one.name, data, share)
        if isinstance(score, np.ndarray):
            right = score[:, 0] == data.labels
            of_share = None if share is None else metrics.percent(right[rows])
            own = metrics.OwnScore(one.name, metrics.percent(right), of_share)
        if one.name in scores.routing and isinstance(by_oracle := scores.routing[one.name].oracle, np.ndarray):
            oracle[one.name] = metrics.percent(by_oracle[:, 0] == data.labels[rows])
        accuracy[one.name] = Accuracy.of(nearest, data.labels[rows], len(data.card.classes), share)
        predicted[one.name] = np.full(len(data), predictions.NOT_EVALUATED, np.int32)
        predicted[one.name][rows] = nearest[:, 0]
    summary = metrics.summary(
        accuracy,
        scores.recall,
        pairs,
        [one.name for one in settings.adaptation],
        [one.name for one in settings.retention],
        own,
    )
    if scores.routing:
        went = {one.name: scores.routing[one.name] for one in settings.sets}
        adapted = [one.name for one in settings.adaptation]
        summary["routing"] = metrics.routing(summary, went, oracle, adapted)
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
    if not params.routes:
        models.load_weights(model, checkpoints.load(project / DEPLOYED), project / DEPLOYED)
    model.to(models.device()).eval()

    scores, done = Scores({}, {}, {}), 0
    rows = {
        name: shares.drawn(name, data, shares.share_of(params.evaluate, name))
        for name, data in sets.items()
        if name not in pairs
    }
    work = {name: len(pairs[name] if name in pairs else rows[name]) for name in sets}
    arrived = own_set(params)
    extra = [arrived] if arrived in sets else []
    total = sum(work.values()) + sum(len(pairs[name] if name in pairs else sets[name]) for name in extra)

    def recall(name: str) -> Recall:
        on_done = partial(_report, progress, done, total, name)
        images = sets[name].images
        return retrieval.recall(model, images, pairs[name], preprocess, batch_size, on_done, precision)

    def nearest(name: str, some: np.ndarray, classifiers: Classifiers) -> np.ndarray:
        of = tuple(map(tuple, texts[name]))
        if of not in classifiers:  # sets that share class list and templates share the classifier
            classifiers[of] = zeroshot.classifier(model, tokens[name], batch_size, precision)
        on_done = partial(_report, progress, done, total, name)
        images = sets[name].images
        return zeroshot.predict(model, images, some, classifiers[of], preprocess, batch_size, on_done, precision)

    if params.routes:
        parts = {
            name: Part(data, pairs[name].images if name in pairs else rows[name], pairs.get(name), tokens.get(name))
            for name, data in sets.items()
        }
        encoded = dict.fromkeys(sets, 0)

        def routed(name: str, count: int) -> None:
            encoded[name] += count
            progress("evaluate", min(sum(encoded.values()), total), total, f"{name}, by route")

        scored, went = routing.measure(
            model, project / ROUTED, project / BASE, parts, preprocess, batch_size, precision, routed
        )  # fmt: skip
        scores.routing.update(went)
        scores.recall.update({name: one for name, one in scored.items() if isinstance(one, dict)})
        scores.nearest.update({name: one for name, one in scored.items() if isinstance(one, np.ndarray)})
        done = total - sum(len(pairs[name] if name in pairs else sets[name]) for name in extra)
    classifiers: Classifiers = {}
    for name in [] if params.routes else sets:
        if name in pairs:
            scores.recall[name] = recall(name)
        else:
            scores.nearest[name] = nearest(name, rows[name], classifiers)
        done += work[name]
    for name in extra:
        expert = coded.stored(project / EXPERT)
        models.load_weights(model, coded.load(expert, project / BASE), expert)
        scores.own[name] = recall(name) if name in pairs else nearest(name, np.arange(len(sets[name])), {})
    return scores


def own_set(params: Params) -> str | None:
    """The evaluation set of the arrival's name, on which its own expert is scored too; None at step 0."""
    arrived = params.arrival.name if params.step and params.arrival else None
    return next((one.name for one in params.evaluate.sets if one.name == arrived), None)


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
