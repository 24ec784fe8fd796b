"""Zero-shot evaluation by route: each image is embedded, and its classes too, by the expert that the router names.

Beside it the *oracle*: the same with the expert of the arrival that the set is named after, whatever the router says.
It is an upper bound on what a better router could reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tasks.evaluate import retrieval, zeroshot
from tasks.evaluate.metrics import TOP, Recall
from tasks.evaluate.retrieval import Pairs
from tasks.evaluate.towers import Precision, feature_batches, text_features
from tasks.model import checkpoints, coded, models, router
from tasks.model.datasets import Dataset
from tasks.model.models import Preprocess

if TYPE_CHECKING:
    from tasks.model.models import Clip

Nearest = np.ndarray
"""As `tasks.evaluate.zeroshot.predict` gives it."""


@dataclass(frozen=True)
class Part:
    """A test set to be scored: pairs, or samples with the tokens of their classes' prompts."""

    data: Dataset
    rows: np.ndarray
    """Images, int64 (M,): the evaluated samples, or the first sample of each distinct image of the pairs."""
    pairs: Pairs | None
    tokens: torch.Tensor | None
    """As `tasks.evaluate.zeroshot.tokens` gives them."""


@dataclass(frozen=True)
class Routing:
    """Where the images of a set went."""

    images: Mapping[str, int]
    """Route → images, where there are some."""
    expert: str | None
    """The right route: that of the arrival of the set's name; None before it arrives, and for other sets."""
    accuracy: float | None
    """Percent of the images that went there."""
    oracle: Nearest | Recall | None
    """What that expert alone gives."""


@dataclass
class _Found:
    """What is being filled, of one set: predictions, or the features of images and captions in a block a route."""

    nearest: Nearest | None = None
    oracle: Nearest | Recall | None = None
    images: list[tuple[np.ndarray, torch.Tensor]] = field(default_factory=list)
    texts: list[torch.Tensor] = field(default_factory=list)


def measure(
    model: Clip,
    folder: Path,
    base: Path,
    parts: Mapping[str, Part],
    preprocess: Preprocess,
    batch_size: int,
    precision: Precision,
    on_done: Callable[[str, int], None],
) -> tuple[dict[str, Nearest | Recall], dict[str, Routing]]:
    """Predictions or recall of some test sets, by route, and where their images went.

    Args:
        model: of the architecture; its weights are those of one route after another.
        folder: the router and the deltas.
        base: the weights that they are deltas of.
        on_done: called with the name of a set and a number of images that were encoded.

    Raises:
        UserError: a file is damaged, or of another base.
    """
    known = router.load(folder / router.FILE)
    models.load_weights(model, checkpoints.load(base), base)
    routes = {}
    for name, part in parts.items():
        features = []
        for batch in feature_batches(model, part.data.images, part.rows, preprocess, batch_size):
            features.append(batch.cpu())
            on_done(name, len(batch))
        routes[name] = known.routed(torch.cat(features)).numpy()
    own = {name: known.own(name) for name in parts}
    results = {name: _Found() for name in parts}
    for number, route in enumerate(known.routes):
        needed = [name for name in parts if own[name] == number or (routes[name] == number).any()]
        if not needed:
            continue
        path = folder / route.file if route.file else base
        models.load_weights(model, coded.load(path, base), path)
        for name in needed:
            there, oracle = routes[name] == number, own[name] == number
            rows = np.flatnonzero(np.ones_like(there) if oracle else there)
            score = _of_pairs if parts[name].pairs else _of_classes
            score(model, parts[name], rows, there, results[name], preprocess, batch_size, precision, oracle=oracle)
            on_done(name, len(rows))
    scores = {name: _score(parts[name], results[name]) for name in parts}
    return scores, {
        name: _routing(known, routes[name], own[name], results[name].oracle) for name in parts
    }  # fmt: skip


def _of_classes(
    model: Clip, part: Part, rows: np.ndarray, there: np.ndarray, result: _Found, preprocess: Preprocess,
    batch_size: int, precision: Precision, *, oracle: bool,
) -> None:  # fmt: skip
    """Predictions of one route's expert for the rows of a set; ``there`` says which of all rows are its own."""
    assert part.tokens is not None
    classifier = zeroshot.classifier(model, part.tokens, batch_size, precision)
    nearest = zeroshot.predict(
        model, part.data.images, part.rows[rows], classifier, preprocess, batch_size, lambda _: None, precision
    )
    if result.nearest is None:
        result.nearest = np.empty((len(part.rows), min(TOP, len(part.tokens)) + 1), np.int32)
    result.nearest[there] = nearest[there[rows]]
    if oracle:
        result.oracle = nearest


def _of_pairs(
    model: Clip, part: Part, rows: np.ndarray, there: np.ndarray, result: _Found, preprocess: Preprocess,
    batch_size: int, precision: Precision, *, oracle: bool,
) -> None:  # fmt: skip
    """Features of images and captions: an image is compared with captions as its own expert embeds them."""
    assert part.pairs is not None
    batches = feature_batches(model, part.data.images, part.rows[rows], preprocess, batch_size, precision)
    images = torch.cat([batch.cpu() for batch in batches])
    texts = text_features(model, part.pairs.tokens, batch_size, precision=precision).cpu()
    if there.any():
        result.images.append((np.flatnonzero(there), images[torch.from_numpy(there[rows])]))
        result.texts.append(texts)
    if oracle:
        result.oracle = retrieval.of_features(images, texts, part.pairs.right)


def _score(part: Part, result: _Found) -> Nearest | Recall:
    if part.pairs is None:
        assert result.nearest is not None
        return result.nearest
    # In one space of as many blocks as experts, the product of an image and a caption is that in the image's block.
    width = result.texts[0].shape[1]
    images = torch.zeros(len(part.rows), width * len(result.texts))
    for block, (rows, features) in enumerate(result.images):
        images[torch.from_numpy(rows), block * width : (block + 1) * width] = features
    return retrieval.of_features(images, torch.cat(result.texts, dim=1), part.pairs.right)


def _routing(known: router.Router, routes: np.ndarray, own: int | None, oracle: Nearest | Recall | None) -> Routing:
    counts = np.bincount(routes, minlength=len(known.routes)).tolist()
    return Routing(
        {one.name: count for one, count in zip(known.routes, counts, strict=True) if count},
        None if own is None else known.routes[own].name,
        None if own is None else 100 * counts[own] / len(routes),
        oracle,
    )
