"""Zero-shot classification: the class whose prompt is nearest to the image (CLIP, arXiv 2103.00020, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from tasks.errors import UserError
from tasks.evaluate.towers import image_features
from tasks.model.models import Preprocess, Tokenizer

if TYPE_CHECKING:
    from tasks.model.models import Clip


def prompts(name: str, classes: Sequence[str], prompt: str) -> list[str]:
    """One primer prompt per class of the data set ``name``.

    Raises:
        UserError: fewer than two classes, or one without a name.
    """
    if len(classes) < 2:
        raise UserError(f"evaluation set {name!r} has {len(classes)} classes; zero-shot classification needs two")
    if not all(c.strip() for c in classes):
        raise UserError(f"evaluation set {name!r} has a class without a name")
    return [prompt.replace("{}", c) for c in classes]


def tokens(name: str, texts: Sequence[str], tokenize: Tokenizer) -> torch.Tensor:
    """Token ids of prompts, int64, shape (C, L).

    Raises:
        UserError: two prompts have the same tokens, so the model cannot distinguish their classes.
    """
    ids = tokenize(texts)
    seen: dict[bytes, str] = {}
    for text, row in zip(texts, ids.numpy(), strict=True):
        other = seen.setdefault(row.tobytes(), text)
        if other is not text:
            raise UserError(
                f"evaluation set {name!r}: the prompts {other!r} and {text!r} have the same tokens;"
                " rename one of the two classes"
            )
    return ids


@torch.inference_mode()
def correct(
    model: Clip,
    images: np.ndarray,
    labels: np.ndarray,
    classifier: torch.Tensor,
    preprocess: Preprocess,
    batch_size: int,
    on_done: Callable[[int], None],
) -> int:
    """How many uint8 images (N, H, W, 3) have their own class's row of ``classifier`` (C, D) nearest.

    Images are read ``batch_size`` at a time; ``on_done`` is called with the number done so far.
    """
    hits = 0
    for start in range(0, len(images), batch_size):
        features = image_features(model, images[start : start + batch_size], preprocess)
        nearest = (features @ classifier.T).argmax(dim=1)
        hits += int((nearest.cpu().numpy() == labels[start : start + batch_size]).sum())
        on_done(min(start + batch_size, len(images)))
    return hits
