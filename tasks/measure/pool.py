"""Measuring an open_clip model on images with classes or captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tasks import randomness
from tasks.errors import UserError
from tasks.measure.drawing import drawn_loss
from tasks.measure.measurement import INPUTS, WIDEST, Measurement, fisher_of, grams_of, require_known, write
from tasks.model import beginnings, models
from tasks.model.statistics import Facts
from tasks.progress import Progress, silent

if TYPE_CHECKING:
    from tasks.model.models import Clip, Preprocess, Tokenizer

SAMPLES = 256
"""Samples, unless told otherwise."""
_PAIRS = 16
"""Images and captions that are told from one another, where there are no classes."""
_FORWARD = 64
"""Samples of a forward pass without gradients."""


@dataclass(frozen=True)
class MeasurePool:
    """Samples to measure on."""

    name: Any
    """What the metadata calls it; plain JSON."""
    images: np.ndarray
    """uint8, shape (N, H, W, 3)."""
    captions: Sequence[str]
    """One a sample."""
    prompts: Sequence[str] = ()
    """One for each class among which a sample is classified; none where samples have captions alone."""


def drawn_rows(count: int, samples: int, seed: int) -> np.ndarray:
    """The rows of ``count`` that are measured, int64, ascending: at most ``samples``, a function of the seed."""
    return np.sort(randomness.generator(seed, "measure", "rows").permutation(count)[:samples])


def prompts_of(classes: Sequence[str], template: str) -> list[str]:
    """One prompt a class; none where there are not two, so that samples are told apart by their captions.

    Raises:
        UserError: a class has no name.
    """
    if not all(name.strip() for name in classes):
        raise UserError("measure: a class of the data has no name, and so no prompt; name it")
    return [template.replace("{}", name) for name in classes] if len(classes) > 1 else []


def measure_pool(
    model: Clip,
    pool: MeasurePool,
    preprocess: Preprocess,
    tokenize: Tokenizer,
    out: Path,
    *,
    statistics: Sequence[str],
    seed: int = 0,
    widest: int = WIDEST,
    progress: Progress = silent,
) -> Measurement:
    """Write the statistics of a model on a pool.

    The Fisher is the expected one with one drawn class a sample: of each image's classes, at the model's temperature;
    or, where samples have captions alone, of the captions of a batch for its image and of the images for its caption.
    Gram matrices see each image and its caption once.

    Raises:
        UserError: no samples, or a result that is not finite.
    """
    require_known(statistics)
    if not len(pool.images):
        raise UserError("measure: there are no samples; give data")
    device = model.logit_scale.device
    model.eval()

    def images(rows: slice) -> torch.Tensor:
        return models.normalize(np.array(pool.images[rows]), preprocess, device).to(model.logit_scale.dtype)

    arrays: dict[str, torch.Tensor] = {}
    rows: set[str] = set()
    left_out: tuple[str, ...] = ()
    total = len(pool.images)
    if "fisher" in statistics:
        texts = _Texts(model, tokenize(list(pool.prompts or pool.captions)).to(device))
        if pool.prompts:
            losses, per_sample = _of_classes(model, images, texts, total, seed), 1
        else:
            losses, per_sample = _of_captions(model, images, texts, seed), 2
        arrays |= fisher_of(model, losses, progress, per_sample * total, texts.used)
    if "gram" in statistics:
        tokens = tokenize(list(pool.captions)).to(device)

        def runs() -> Iterator[Callable[[], None]]:
            for start in range(0, total, _FORWARD):
                batch = slice(start, start + _FORWARD)

                def run(batch: slice = batch) -> None:
                    model.encode_image(images(batch))
                    models.text_features(model, tokens[batch])

                yield run
                progress("gram", min(total, start + _FORWARD), total)

        grams, rows, left_out = grams_of(model, runs(), widest)
        arrays |= grams
    return write(
        out,
        arrays,
        Facts(total, "expected" if "fisher" in statistics else INPUTS, pool.name, tuple(sorted(rows))),
        left_out,
    )


def _logits(model: Clip, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    logits = model.logit_scale.exp() * images @ texts.T
    return logits if model.logit_bias is None else logits + model.logit_bias


class _Texts:
    """Texts that every backward pass goes through: what they have in common is computed once."""

    def __init__(self, model: Clip, tokens: torch.Tensor) -> None:
        self._model, self.tokens = model, tokens
        self._rows = beginnings.UsedRows(model, tokens) if beginnings.are_served(model, tokens) else None

    @property
    def used(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """As `fisher_of` takes it."""
        return {"token_embedding.weight": (self._rows.ids, self._rows.rows)} if self._rows else {}

    def features(self, rows: slice) -> torch.Tensor:
        """Normalized, of some of them, with gradients."""
        if self._rows:
            return beginnings.features(self._model, self.tokens[rows], self._rows)
        return models.text_features(self._model, self.tokens[rows])


def _of_classes(
    model: Clip, images: Callable[[slice], torch.Tensor], prompts: _Texts, total: int, seed: int
) -> Iterator[torch.Tensor]:
    """One loss a sample; the prompts' features are computed once, and every backward pass goes through them."""
    texts = prompts.features(slice(None))
    for row in range(total):
        image = model.encode_image(images(slice(row, row + 1)), normalize=True)
        yield drawn_loss(_logits(model, image, texts)[0], seed, row)


def _of_captions(
    model: Clip, images: Callable[[slice], torch.Tensor], captions: _Texts, seed: int
) -> Iterator[torch.Tensor]:
    """Two losses a sample, from its row and its column of the logits of a few pairs."""
    total = len(captions.tokens)
    count = max(1, round(total / _PAIRS))
    for place in np.array_split(np.arange(total), count):
        rows = range(int(place[0]), int(place[-1]) + 1)
        parts = [model.encode_image(images(slice(row, row + 1)), normalize=True) for row in rows]
        texts = captions.features(slice(rows.start, rows.stop))
        logits = _logits(model, torch.cat(parts), texts)
        for i, row in enumerate(rows):
            yield drawn_loss(logits[i], seed, 2 * row)
            yield drawn_loss(logits[:, i], seed, 2 * row + 1)
