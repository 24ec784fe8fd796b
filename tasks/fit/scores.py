"""What a model scores on held-out samples, in the units of ``metrics.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.evaluate import prompts, retrieval, zeroshot
from tasks.evaluate.metrics import DIGITS
from tasks.fit.method import Problem
from tasks.fit.samples import FitPool, FitSamples
from tasks.model import checkpoints, models
from tasks.model.models import Preprocess, Tokenizer
from tasks.scores import scores

if TYPE_CHECKING:
    from tasks.model.models import Clip

MODEL = Path("data/history/model")


@dataclass(frozen=True)
class _Captioned:
    images: np.ndarray
    captions: Sequence[str]


@dataclass
class Scorer:
    """Scores weights on held-out samples: accumulation over the arrivals' pools, retention over the pretraining pool.

    A pool counts by its top-1 among its own classes, or by its mean recall@5 where its samples have captions alone.
    """

    model: Clip
    samples: FitSamples
    preprocess: Preprocess
    tokenize: Tokenizer
    batch_size: int
    count: int
    """Samples of a pool, at most."""
    seed: int

    def __post_init__(self) -> None:
        pools = [*self.samples.arrivals, *([self.samples.pretraining] if self.samples.pretraining else [])]
        self._pools = [pool for pool in pools if len(pool.held)]
        self._rows = {pool.name: pool.drawn(pool.held, self.count, self.seed, "score") for pool in self._pools}

    @property
    def sizes(self) -> dict[str, int]:
        """Pool → samples that are scored."""
        return {name: len(rows) for name, rows in self._rows.items()}

    def score(self, weights: Path) -> dict[str, Any]:
        """As `measure`, of a file.

        Raises:
            UserError: weights of another model or that are not finite, or classes that cannot be told apart.
        """
        models.load_weights(self.model, checkpoints.load(weights), weights)
        return self.measure()

    def measure(self) -> dict[str, Any]:
        """The scores of the model as it is, in the form of ``metrics.json``, with pools for evaluation sets.

        A_ZS and the geometric mean only where there is a pretraining pool.

        Raises:
            UserError: the classes of a pool cannot be told apart.
        """
        self.model.eval()
        top1: dict[str, float] = {}
        recall: dict[str, Any] = {}
        for pool in self._pools:
            rows = self._rows[pool.name]
            if pool.labelled:
                top1[pool.name] = self._top1(pool, rows)
            else:
                recall[pool.name] = self._recall(pool, rows)
        return means({"top1": top1, "recall": recall}, self.samples)

    def _top1(self, pool: FitPool, rows: np.ndarray) -> float:
        card = pool.data.card
        texts = zeroshot.prompts(pool.name, card.classes, prompts.templates(card.templates or card.prompt))
        tokens = zeroshot.tokens(pool.name, texts, self.tokenize)
        classifier = zeroshot.classifier(self.model, tokens, self.batch_size)
        nearest = zeroshot.predict(
            self.model, pool.data.images, rows, classifier, self.preprocess, self.batch_size, _nobody
        )
        return 100 * float((nearest[:, 0] == pool.data.labels[rows]).mean())

    def _recall(self, pool: FitPool, rows: np.ndarray) -> Mapping[str, Mapping[str, float]]:
        part = _Captioned(np.asarray(pool.data.images[rows]), [pool.data.captions[row] for row in rows])
        pairs = retrieval.pairs(pool.name, part, self.tokenize)
        return retrieval.recall(self.model, part.images, pairs, self.preprocess, self.batch_size, _nobody)


def scorer_of(problem: Problem, count: int) -> Scorer:
    """Of a time step, on at most ``count`` held-out samples of each pool."""
    folder = problem.project / MODEL
    return Scorer(
        problem.model, problem.samples, models.preprocess(folder), models.tokenizer(folder),
        problem.params.evaluate.batch_size, count, problem.seed,
    )  # fmt: skip


def means(scored: dict[str, Any], samples: FitSamples) -> dict[str, Any]:
    """Scores with the means over arrivals and over the pretraining pool, in percent."""
    each = scores(scored)
    arrivals = [each[pool.name] for pool in samples.arrivals if pool.name in each]
    scored["A_KA"] = round(fmean(arrivals), DIGITS)
    if samples.pretraining and samples.pretraining.name in each:
        scored["A_ZS"] = round(each[samples.pretraining.name], DIGITS)
        scored["geometric_mean"] = round(math.sqrt(scored["A_KA"] * scored["A_ZS"]), DIGITS)
    return scored


def _nobody(done: int) -> None:
    """Batches of so few samples are not worth a report."""
