"""Statistics of an expert whose data nobody has: it weighs, in every entry and every input, what the base weighs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tasks.measure.measurement import WIDEST, Measurement, grams_of, write
from tasks.model import models
from tasks.model.statistics import PRIOR, Facts

if TYPE_CHECKING:
    from tasks.model.models import Clip, Preprocess, Tokenizer

POOL = "no data: the prior's weight"


def write_prior(
    model: Clip, weight: float, preprocess: Preprocess, tokenize: Tokenizer, out: Path, statistics: Sequence[str]
) -> Measurement:
    """Write a statistics file that nothing was measured for: Fisher entries and inputs' second moments of ``weight``.

    Gram matrices are ``weight`` · I, in the form in which measuring would have them.

    Raises:
        UserError: it cannot be written.
    """
    arrays: dict[str, torch.Tensor] = {}
    rows: set[str] = set()
    left_out: tuple[str, ...] = ()
    if "fisher" in statistics:
        arrays |= {f"fisher/{name}": torch.full(p.shape, weight) for name, p in model.named_parameters()}
    if "gram" in statistics:
        size = preprocess.image_size
        blank = models.normalize(np.zeros((1, size, size, 3), np.uint8), preprocess, model.logit_scale.device)

        def run() -> None:
            model.encode_image(blank.to(model.logit_scale.dtype))
            models.text_features(model, tokenize([""]).to(blank.device))

        shapes, rows, left_out = grams_of(model, [run], WIDEST)
        arrays |= {
            name: torch.eye(len(gram)) * weight if gram.ndim == 2 else torch.full(gram.shape, weight)
            for name, gram in shapes.items()
        }
    return write(out, arrays, Facts(1, PRIOR, POOL, tuple(sorted(rows))), left_out)
