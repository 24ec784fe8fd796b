"""The node ``evaluate`` on a project folder, as ``dvc.yaml`` declares it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch

from tasks import checkpoints, models
from tasks.datasets import Dataset
from tasks.errors import UserError
from tasks.evaluate import metrics, zeroshot
from tasks.params import EvaluationSet, Params
from tasks.progress import Progress, silent

MODEL = Path("data/history/model")
DEPLOYED = Path("data/step/deployed.safetensors")
SETS = Path("data/step/evaluation")
METRICS = Path("metrics.json")


def evaluate(project: Path, params: Params, progress: Progress = silent) -> None:
    """Write ``metrics.json``: zero-shot top-1 of the deployed model on every test set, A_KA, A_ZS and their mean.

    Raises:
        UserError: damaged weights or data, or a test set that cannot be classified; the message names it.
    """
    models.configure(params.threads)
    settings = params.evaluate
    sets = {s.name: _open(project, s) for s in (*settings.adaptation, *settings.retention)}
    texts = {
        s.name: tuple(zeroshot.prompts(s.name, sets[s.name].card.classes, s.prompt or sets[s.name].card.prompt))
        for s in (*settings.adaptation, *settings.retention)
    }
    tokenize = models.tokenizer(project / MODEL)
    tokens = {name: zeroshot.tokens(name, texts[name], tokenize) for name in sets}
    preprocess = models.preprocess(project / MODEL)
    model = models.build(project / MODEL)
    models.load_weights(model, checkpoints.load(project / DEPLOYED), project / DEPLOYED)
    model.to(models.device()).eval()

    features: dict[tuple[str, ...], torch.Tensor] = {}
    top1, total, done = {}, sum(map(len, sets.values())), 0
    for name, data in sets.items():
        if texts[name] not in features:  # sets that share a class list share its features
            features[texts[name]] = zeroshot.text_features(model, tokens[name], settings.batch_size)
        hits = zeroshot.correct(
            model,
            data.images,
            data.labels,
            features[texts[name]],
            preprocess,
            settings.batch_size,
            partial(_say, progress, done, total, name),
        )
        done += len(data)
        top1[name] = 100 * hits / len(data)
    summary = metrics.summary(
        top1,
        {n: len(d) for n, d in sets.items()},
        [s.name for s in settings.adaptation],
        [s.name for s in settings.retention],
    )
    temporary = project / f".{METRICS.name}.part"
    temporary.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(project / METRICS)


def _say(progress: Progress, before: int, total: int, name: str, done: int) -> None:
    progress("evaluate", before + done, total, name)


def _open(project: Path, which: EvaluationSet) -> Dataset:
    """A test set with a label on every sample."""
    data = Dataset(project / SETS / which.name)
    wrong = (data.labels < 0) | (data.labels >= len(data.card.classes))
    if wrong.any():
        raise UserError(
            f"evaluation set {which.name!r}: sample {data.ids[int(wrong.argmax())]!r} has no class of the set;"
            " zero-shot classification needs a class for every sample"
        )
    return data
