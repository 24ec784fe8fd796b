"""How long a ready stream takes on this machine: a few batches of the real model, times counts.

Weights are random, because arithmetic takes the same time for any; so nothing is downloaded but a tokenizer where the
model's is on a hub. Each piece of work is timed in several turns: the fastest and the slowest are the range.
"""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tasks import randomness
from tasks.params import Params
from tasks.stream.manifest import StreamManifest
from tasks.units import duration

if TYPE_CHECKING:
    from tasks.train.loop import Batch, Training

TURNS = 2
SAMPLES = 4
"""Of a batch on a CPU; a GPU, which small batches leave idle, gets whole ones."""
PHOTOGRAPHS = 16
WIDTH, HEIGHT = 500, 375
"""Pixels of the photographs whose preparation is timed, as many data sets have them."""


@dataclass(frozen=True)
class Seconds:
    """A range."""

    least: float
    most: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.least + other.least, self.most + other.most)

    def __mul__(self, count: float) -> Seconds:
        return Seconds(self.least * count, self.most * count)

    def __str__(self) -> str:
        least, most = duration(self.least), duration(self.most)
        return least if least == most else f"{least} to {most}"


@dataclass(frozen=True)
class Pace:
    """What pieces of work take on this machine."""

    sample: Seconds
    """Forward and backward for one sample of training."""
    update: Seconds
    """The rest of a training step, which does not depend on its samples: clipping and the optimizer."""
    image: Seconds
    """The features of one image."""
    text: Seconds
    """The features of one text."""
    photograph: Seconds
    """Decoding and resizing one photograph."""
    device: str


@dataclass(frozen=True)
class Work:
    """Counts of what a run computes."""

    steps: int
    """Training steps, over all time steps, and those of a base that is trained."""
    samples: int
    """Samples of these, each as often as it is trained on."""
    images: int
    """Test images that are scored, over all evaluations."""
    texts: int
    """Prompts whose features are computed, over all evaluations."""
    photographs: int
    """Samples that are prepared."""
    uncounted: tuple[str, ...]
    """Sets some of whose samples or classes nobody has counted."""


@dataclass(frozen=True)
class Forecast:
    """The time that a run takes."""

    train: Seconds
    evaluate: Seconds
    prepare: Seconds
    work: Work
    device: str

    def __str__(self) -> str:
        whole = self.train + self.evaluate + self.prepare
        counted = f"; not counted: {', '.join(self.work.uncounted)}" if self.work.uncounted else ""
        return (
            f"time: {whole} (training {self.train}, evaluation {self.evaluate}, preparation {self.prepare}), from "
            f"{TURNS} turns of each on this machine's {self.device} as busy as it is now, times {self.work.steps:,} "
            f"training steps, {self.work.images:,} images scored and {self.work.photographs:,} prepared{counted}; "
            "downloads, merges and storing come on top"
        )


def work(manifest: StreamManifest, params: Params) -> Work:
    """What one timeline of a ready stream computes; each state scores all test sets."""
    states = len(params.stream) + 1
    trained = sum(arrival.expert is None for arrival in params.stream)
    base = params.base.train
    given = params.train.given
    steps = given.steps or (given.samples or 0) // params.train.batch_size
    arriving = [one for one in manifest.of_role("adaptation") if trained]
    tests = sum(one.counts.test or 0 for one in manifest.sets)
    unknown = [one.name for one in manifest.sets if None in one.counted(trained=one in arriving)]
    share = params.evaluate.share or 1.0
    evaluations = 2 + (states - 2) * share if states > 1 else 1.0  # the first and the last are in full
    return Work(
        steps=trained * steps + (base.steps if base else 0),
        samples=trained * steps * params.train.batch_size + (base.steps * base.batch_size if base else 0),
        images=round(evaluations * tests),
        texts=states * sum((one.number_of_classes or 0) * max(1, len(one.templates)) for one in manifest.sets),
        photographs=tests + sum(one.counts.train or 0 for one in arriving),
        uncounted=tuple(unknown),
    )


def forecast(pace: Pace, of: Work) -> Forecast:
    """Pace times counts."""
    train = pace.sample * of.samples + pace.update * of.steps
    return Forecast(
        train, pace.image * of.images + pace.text * of.texts, pace.photograph * of.photographs, of, pace.device
    )


def measured(params: Params, project: Path, scratch: Path) -> Pace:
    """Time a few batches of training, evaluation and preparation, with the model of some params.

    Raises:
        UserError: there is no such model.
    """
    import torch

    from tasks.evaluate import towers
    from tasks.model import models
    from tasks.prepare import imaging
    from tasks.prepare.source import Context
    from tasks.train.loop import Training
    from tasks.train.measure import grey_batch
    from tasks.train.node import method_of, recipe_of

    folder = scratch / "model"
    models.resolve(params.base, project, folder)
    models.fetch_tokenizer(params.base, project, folder, scratch)
    models.configure(params.threads)
    device, how = models.device(), models.preprocess(folder)
    params = params.model_copy(update={"step": 1})
    count = params.train.batch_size if device.type == "cuda" else min(params.train.batch_size, SAMPLES)
    with torch.random.fork_rng():
        model = models.build(folder).to(device)
        batch = grey_batch(count, how.image_size, models.tokenizer(folder))
        model.eval()
        images = _turns(lambda: towers.image_features(model, batch.images, how, params.evaluate.precision))
        texts = _turns(lambda: towers.text_features(model, batch.tokens, count, precision=params.evaluate.precision))
        method_of(params).start(model, functools.partial(randomness.generator, 0, "pace"))
        recipe = replace(recipe_of(params, 2 * TURNS), batch_size=count, accumulate=1)
        training = Training(model, recipe, how, seed=0)
        samples, updates = _of_step(training, batch)
    context = Context(0, how.image_size, how.interpolation, how.resize_mode == "squash", scratch)
    files = [_photograph(number) for number in range(PHOTOGRAPHS)]
    decoded = _turns(lambda: [imaging.decode(file, context, "photograph") for file in files])
    return Pace(
        sample=samples * (1 / count),
        update=updates,
        image=images * (1 / count),
        text=texts * (1 / count),
        photograph=decoded * (1 / PHOTOGRAPHS),
        device="GPU" if device.type == "cuda" else "CPU",
    )


def _of_step(training: Training, batch: Batch) -> tuple[Seconds, Seconds]:
    """Of training steps: forward and backward, and the rest."""
    gradients, parts = training.gradients, []

    def timed(batch: Batch) -> float:
        start = _now()
        loss = gradients(batch)
        parts.append(_now() - start)
        return loss

    training.gradients = timed  # type: ignore[method-assign]
    whole = _each(lambda: training.step(batch))
    rest = [step - part for step, part in zip(whole, parts, strict=True)]
    return _range(parts), _range(rest)


def _turns(run: Callable[[], object]) -> Seconds:
    """The fastest and the slowest of some turns."""
    return _range(_each(run))


def _each(run: Callable[[], object]) -> list[float]:
    """The seconds of some turns and of one before them, which warms up."""
    taken = []
    for _ in range(TURNS + 1):
        start = _now()
        run()
        taken.append(_now() - start)
    return taken


def _range(taken: Sequence[float]) -> Seconds:
    return Seconds(min(taken[1:]), max(taken[1:]))


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _photograph(number: int) -> bytes:
    """A JPEG file with the detail of a photograph: blurred noise, some 40 kB."""
    coarse = randomness.generator(number, "photograph").integers(0, 256, (HEIGHT // 5, WIDTH // 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90)
    return content.getvalue()
