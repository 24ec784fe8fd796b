"""Retrieval on a test set: for each image its captions, and for each caption its images (recall at k).

A test set without classes is a set of pairs. Images are equal if their pixels are, captions if their tokens are, as in
training. So an image with five captions is five samples with the same pixels, and all five captions are right for it;
two images with one caption are both right for that caption. Each distinct image and each distinct caption counts once,
both as a query and as a candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from tasks.errors import UserError
from tasks.evaluate.metrics import Recall
from tasks.evaluate.towers import Precision, feature_batches, text_features
from tasks.model.datasets import ImageArray, digest
from tasks.model.models import Preprocess, Tokenizer

if TYPE_CHECKING:
    from tasks.model.models import Clip

KS = (1, 5, 10)
BLOCK = 1024
"""Images and captions whose similarities are computed at a time."""
GRID = 2.0**26
"""Features are rounded to so many steps from 0 to 1, by less than float32 errs in a cosine. Every product, and every
sum of products in a cosine of unit vectors, is then a whole number below 2⁵³: exact in float64."""


@dataclass(frozen=True)
class Pairs:
    """The distinct images and captions of a set, and which belong together."""

    images: np.ndarray
    """For each distinct image the first sample that has it, int64, shape (I,)."""
    tokens: torch.Tensor
    """Of each distinct caption, int64, shape (C, L)."""
    right: np.ndarray
    """Each pair once, an image's and a caption's number, by image: int64, shape (P, 2)."""

    def __len__(self) -> int:
        """The number of images and captions to encode."""
        return len(self.images) + len(self.tokens)


class Captioned(Protocol):
    """Images with captions, one a row; a `tasks.model.datasets.Dataset` is one."""

    @property
    def images(self) -> ImageArray: ...

    @property
    def captions(self) -> Sequence[str]: ...


def pairs(name: str, data: Captioned, tokenize: Tokenizer) -> Pairs:
    """The pairs of the evaluation set ``name``.

    Raises:
        UserError: fewer than two images or captions that differ.
    """
    numbers: dict[bytes, int] = {}
    image_of = np.array([numbers.setdefault(digest(image), len(numbers)) for image in data.images])
    texts = list(dict.fromkeys(data.captions))
    tokens, same = torch.unique(tokenize(texts), dim=0, return_inverse=True)
    if len(numbers) < 2 or len(tokens) < 2:
        raise UserError(
            f"evaluation set {name!r} has no classes, and of images that differ {len(numbers)}, of captions"
            f" {len(tokens)}; retrieval needs two of each"
        )
    number_of = dict(zip(texts, same.tolist(), strict=True))
    caption_of = np.array([number_of[caption] for caption in data.captions])
    _, first = np.unique(image_of, return_index=True)
    return Pairs(first, tokens, np.unique(np.stack([image_of, caption_of], axis=1), axis=0))


def recall(
    model: Clip,
    images: ImageArray,
    among: Pairs,
    preprocess: Preprocess,
    batch_size: int,
    on_done: Callable[[int], None],
    precision: Precision = "float32",
) -> Recall:
    """recall@k in percent, both ways: the share of queries with a right candidate among the k most similar.

    ``images`` are those of the set, uint8 (N, H, W, 3), read ``batch_size`` at a time; ``on_done`` is called with the
    number of encoded images and captions. A k above the number of candidates takes all of them.
    """
    count = len(among.images)
    features, done = [], 0
    for part in feature_batches(model, images, among.images, preprocess, batch_size, precision):
        features.append(part)
        done += len(part)
        on_done(done)
    texts = text_features(model, among.tokens, batch_size, lambda done: on_done(count + done), precision)
    return of_features(torch.cat(features), texts, among.right)


def of_features(images: torch.Tensor, captions: torch.Tensor, right: np.ndarray) -> Recall:
    """recall@k in percent, both ways, from features as `before_right` takes them."""
    by_image, by_caption = before_right(images, captions, right)
    return {"image_to_text": _shares(by_image), "text_to_image": _shares(by_caption)}


@torch.inference_mode()
def before_right(
    images: torch.Tensor, captions: torch.Tensor, right: np.ndarray, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """How many wrong candidates come before the most similar right one: for each image, and for each caption.

    Features are normalized, float32, shapes (I, D) and (C, D); ``right`` is as in `Pairs` and has every image and every
    caption. Cosines are exact (see `GRID`), so that the result, int64 of shapes (I,) and (C,), depends neither on
    ``block`` nor on the order of sums. A wrong candidate that is exactly as similar comes before, and so does one with
    NaN features: a model whose features are all equal scores zero.

    Memory is that of ``block``² similarities.
    """
    of_image, of_caption = _best(images, captions, right, block)
    before_image, before_caption = (torch.zeros_like(best, dtype=torch.int64) for best in (of_image, of_caption))
    for i in range(0, len(images), block):
        rows = slice(i, i + block)
        queries = exact(images[rows])
        paired = right[slice(*np.searchsorted(right[:, 0], (i, i + block)))]
        for c in range(0, len(captions), block):
            columns = slice(c, c + block)
            similar = queries @ exact(captions[columns]).T
            own = paired[(paired[:, 1] >= c) & (paired[:, 1] < c + block)]
            similar[own[:, 0] - i, own[:, 1] - c] = -torch.inf
            # "Not less" and not "at least": with NaN both comparisons are false.
            before_image[rows] += (~(similar < of_image[rows, None])).sum(dim=1)
            before_caption[columns] += (~(similar < of_caption[columns])).sum(dim=0)
    return before_image.cpu().numpy(), before_caption.cpu().numpy()


def _best(images: torch.Tensor, captions: torch.Tensor, right: np.ndarray, block: int) -> list[torch.Tensor]:
    """How similar the most similar right one is to each image and each caption: float64, in squared steps of `GRID`."""
    most_similar = [np.full(len(features), -np.inf) for features in (images, captions)]
    for part in np.split(right, range(block, len(right), block)):
        similar = (exact(images[part[:, 0]]) * exact(captions[part[:, 1]])).sum(dim=1).cpu().numpy()
        for side, best in enumerate(most_similar):
            np.maximum.at(best, part[:, side], np.where(np.isfinite(similar), similar, -np.inf))
    return [torch.from_numpy(best).to(images.device) for best in most_similar]


def _shares(before: np.ndarray) -> dict[str, float]:
    return {str(k): 100 * float((before < k).mean()) for k in KS}


def exact(features: torch.Tensor) -> torch.Tensor:
    """Features in steps of `GRID`: float64, all sums of products exact."""
    return (features.double() * GRID).round()
