"""The node ``evaluate`` on a project folder, as ``dvc.yaml`` declares it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch

from tasks import checkpoints, models, whole
from tasks.datasets import Dataset
from tasks.errors import UserError
from tasks.evaluate import metrics, retrieval, zeroshot
from tasks.evaluate.memory import keeping_memory
from tasks.evaluate.towers import text_features
from tasks.params import Params
from tasks.progress import Progress, silent

MODEL = Path("data/history/model")
DEPLOYED = Path("data/step/deployed.safetensors")
SETS = Path("data/step/evaluation")
METRICS = Path("metrics.json")


@keeping_memory()
def evaluate(project: Path, params: Params, progress: Progress = silent) -> None:
    """Write ``metrics.json``: how the deployed model does on every test set, A_KA, A_ZS and their mean.

    That is zero-shot top-1 on a set with classes, and recall@k in both directions on pairs of images and captions.

    Raises:
        UserError: damaged weights or data, or a test set that can be neither; the message names it.
    """
    models.configure(params.threads)
    settings, tokenize = params.evaluate, models.tokenizer(project / MODEL)
    every = (*settings.adaptation, *settings.retention)
    sets = {one.name: Dataset(project / SETS / one.name) for one in every}
    pairs = {name: retrieval.pairs(name, data, tokenize) for name, data in sets.items() if not _labelled(name, data)}
    prompts = {
        one.name: zeroshot.prompts(one.name, sets[one.name].card.classes, one.prompt or sets[one.name].card.prompt)
        for one in every
        if one.name not in pairs
    }
    tokens = {name: zeroshot.tokens(name, texts, tokenize) for name, texts in prompts.items()}
    preprocess = models.preprocess(project / MODEL)
    model = models.build(project / MODEL)
    models.load_weights(model, checkpoints.load(project / DEPLOYED), project / DEPLOYED)
    model.to(models.device()).eval()

    features: dict[tuple[str, ...], torch.Tensor] = {}
    top1, recall, done = {}, {}, 0
    work = {name: len(pairs.get(name, data)) for name, data in sets.items()}
    for name, data in sets.items():
        heard = partial(_say, progress, done, sum(work.values()), name)
        if name in pairs:
            recall[name] = retrieval.recall(model, data.images, pairs[name], preprocess, settings.batch_size, heard)
        else:
            texts = tuple(prompts[name])
            if texts not in features:  # sets that share a class list share its features
                features[texts] = text_features(model, tokens[name], settings.batch_size)
            hits = zeroshot.correct(
                model, data.images, data.labels, features[texts], preprocess, settings.batch_size, heard
            )
            top1[name] = 100 * hits / len(data)
        done += work[name]
    summary = metrics.summary(
        top1,
        recall,
        {name: len(data) for name, data in sets.items()},
        [one.name for one in settings.adaptation],
        [one.name for one in settings.retention],
    )
    whole.write(project / METRICS, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def _say(progress: Progress, before: int, total: int, name: str, done: int) -> None:
    progress("evaluate", before + done, total, name)


def _labelled(name: str, data: Dataset) -> bool:
    """Whether every sample of a test set has a class, or none has.

    Raises:
        UserError: some have.
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
