"""What a stream is cut from: the classes of some data sets, and what an ordering may ask about them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import params, prepare
from tasks.errors import UserError
from tasks.model import checkpoints, models
from tasks.params import Name, Settings, SourceSpec
from tasks.prepare.source import Context, Outside, Reading, Source

if TYPE_CHECKING:
    import torch

    from tasks.model.models import Clip

BATCH = 256
"""Captions or images that the base sees at a time."""


class DataSet(Settings):
    """One data set to cut, written as an arrival is."""

    name: Name
    update: list[SourceSpec]
    date: str | None = None
    """When it was released: a year, or a year and more, as 2011-05-30."""


@dataclass(frozen=True)
class Pair:
    """One class of one data set."""

    data_set: str
    name: str
    captions: tuple[str, ...]
    """Those of its samples, each once, in the order of the samples."""
    sources: tuple[dict[str, Any], ...]
    """The data set's sources that have the class, each reading it alone."""


@dataclass(frozen=True)
class LoadedBase:
    """The base model, for orderings that ask what it knows."""

    model: Clip
    tokenize: models.Tokenizer
    preprocess: models.Preprocess

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """Normalized features, float32, shape (N, D)."""
        import torch

        with torch.inference_mode():
            parts = self.tokenize(texts).split(BATCH)
            features = [self.model.encode_text(p.to(models.device()), normalize=True) for p in parts]
            joined: np.ndarray = torch.cat(features).float().cpu().numpy()
        return joined

    def image_features(self, images: np.ndarray) -> np.ndarray:
        """Normalized features of uint8 images (N, H, W, 3), float32, shape (N, D)."""
        import torch

        with torch.inference_mode():
            pixels: torch.Tensor = models.normalize(images, self.preprocess, models.device())
            encoded: np.ndarray = self.model.encode_image(pixels, normalize=True).float().cpu().numpy()
        return encoded


@dataclass(frozen=True)
class Material:
    """The classes of all data sets, in the order given, and what else an ordering may ask for."""

    pairs: tuple[Pair, ...]
    data_sets: tuple[DataSet, ...]
    seed: int
    project: Path
    """Where relative paths start."""
    pretraining: Callable[[], Iterator[str]]
    """The captions of the pretraining pool, one after another."""
    base: Callable[[], LoadedBase]
    """Raises UserError where the base has no weights yet."""
    readings: Callable[[DataSet], Any]
    """A context manager that gives a data set's readings, for its images."""


@dataclass(frozen=True)
class ModelFolder:
    """The base's model folder, without weights."""

    folder: Path
    preprocess: models.Preprocess


def resolved(base: params.Base, project: Path, into: Path) -> ModelFolder:
    """What ``params.yaml`` says of the base, looked up.

    Raises:
        UserError: there is no such model.
    """
    models.resolve(base, project, into)
    return ModelFolder(into, models.preprocess(into))


def base(model: ModelFolder, given: params.Base, project: Path, weights: Path | None) -> LoadedBase:
    """The base, ready to be asked; ``weights`` is a checkpoint, or None to fetch what params.yaml names.

    Raises:
        UserError: the weights cannot be had, or are not the model's.
    """
    if weights is None:
        models.fetch_base(given, project, model.folder)
        weights = model.folder / "base.safetensors"
    models.configure(None)
    built = models.build(model.folder)
    read = checkpoints.load(weights) if not weights.suffix else models.read_checkpoint(weights)  # or in the cache
    models.load_weights(built, read, weights)
    return LoadedBase(built.to(models.device()).eval(), models.tokenizer(model.folder), model.preprocess)


def gather(
    data_sets: Sequence[DataSet],
    pretraining: Sequence[SourceSpec],
    base: Callable[[], LoadedBase],
    outside: Outside,
    context: Context,
) -> Material:
    """Look through some data sets for their classes; images are not decoded.

    Raises:
        UserError: a source cannot be had, or has samples without a class.
    """

    @contextmanager
    def readings(one: DataSet) -> Iterator[list[tuple[Source, Reading]]]:
        with prepare.looked_into(one.update, f"data set {one.name}", outside, replace(context, memo={})) as read:
            yield read

    def captions() -> Iterator[str]:
        with prepare.looked_into(pretraining, "base.pretraining", outside, replace(context, memo={})) as read:
            for _, reading in read:
                yield from (caption for caption, _ in reading.texts)

    pairs: list[Pair] = []
    for one in data_sets:
        with readings(one) as known:
            pairs += _pairs(one, known)
    return Material(
        tuple(pairs), tuple(data_sets), outside.seed, outside.project, captions, functools.cache(base), readings
    )


def _pairs(one: DataSet, readings: Sequence[tuple[Source, Reading]]) -> list[Pair]:
    captions: dict[str, dict[str, None]] = {}
    having: dict[str, list[Source]] = {}
    for source, reading in readings:
        for caption, name in reading.texts:
            if name is None:
                raise UserError(f"data set {one.name}: the sample {caption!r} has no class; a stream is cut by class")
            captions.setdefault(name, {})[caption] = None
        for name in reading.classes:
            having.setdefault(name, []).append(source)
    return [
        Pair(one.name, name, tuple(captions[name]), tuple(_alone(source, name) for source in having[name]))
        for name in sorted(having)
    ]


def _alone(source: Source, name: str) -> dict[str, Any]:
    given = source.model_dump(mode="json", exclude_defaults=True)
    return {"source": source.name, **given, "only": [name]}
