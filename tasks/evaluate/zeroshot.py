"""Zero-shot classification: the class whose prompt is nearest to the image (CLIP, arXiv 2103.00020, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from tasks.errors import UserError
from tasks.evaluate.metrics import TOP
from tasks.evaluate.prompts import PLACE
from tasks.evaluate.towers import Precision, image_features, text_features
from tasks.model.datasets import ImageArray
from tasks.model.models import Preprocess, Tokenizer

if TYPE_CHECKING:
    from tasks.model.models import Clip


def prompts(name: str, classes: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """For each class of the data set ``name`` its prompts, one a template.

    Raises:
        UserError: fewer than two classes, or one without a name.
    """
    if len(classes) < 2:
        raise UserError(f"evaluation set {name!r} has {len(classes)} classes; zero-shot classification needs two")
    if not all(c.strip() for c in classes):
        raise UserError(f"evaluation set {name!r} has a class without a name")
    return [[template.replace(PLACE, c) for template in templates] for c in classes]


def tokens(name: str, texts: Sequence[Sequence[str]], tokenize: Tokenizer) -> torch.Tensor:
    """Token ids of the prompts of classes, int64, shape (C, T, L) for C classes of T prompts each.

    Two classes of the same name (ImageNet has some) have the same tokens.

    Raises:
        UserError: all prompts of two classes of different names have the same tokens, so the model cannot distinguish
            the classes.
    """
    ids = tokenize([text for own in texts for text in own]).unflatten(0, (len(texts), len(texts[0])))
    seen: dict[bytes, str] = {}
    for own, rows in zip(texts, ids.numpy(), strict=True):
        other = seen.setdefault(rows.tobytes(), own[0])
        if other != own[0]:
            raise UserError(
                f"evaluation set {name!r}: the prompts {other!r} and {own[0]!r} have the same tokens;"
                " rename one of the two classes"
            )
    return ids


@torch.inference_mode()
def classifier(model: Clip, token_ids: torch.Tensor, batch_size: int, precision: Precision = "float32") -> torch.Tensor:
    """A unit vector for each class, float32 of shape (C, D), from tokens of shape (C, T, L).

    The normalized features of its prompts; of several the mean, normalized again, as open_clip's
    ``build_zero_shot_classifier`` has it. About ``batch_size`` prompts are encoded at a time.
    """
    count = token_ids.shape[1]
    if count == 1:
        return text_features(model, token_ids[:, 0], batch_size, precision=precision)
    means = [
        text_features(model, part.flatten(0, 1), batch_size, precision=precision)
        .unflatten(0, (len(part), count))
        .mean(dim=1)
        for part in token_ids.split(max(1, batch_size // count))
    ]
    return torch.nn.functional.normalize(torch.cat(means), dim=1)


@torch.inference_mode()
def predict(
    model: Clip,
    images: ImageArray,
    rows: np.ndarray,
    classifier: torch.Tensor,
    preprocess: Preprocess,
    batch_size: int,
    on_done: Callable[[int], None],
    precision: Precision = "float32",
) -> np.ndarray:
    """For some of the uint8 images (N, H, W, 3) the rows of ``classifier`` (C, D) that are nearest, nearest first.

    ``rows`` are the images' numbers, int64 (M,); the result is int32 of shape (M, min(C, 5) + 1). Its first column is
    the nearest (the first of equal ones), the others are the five nearest. Images are read ``batch_size`` at a time;
    ``on_done`` is called with the number done so far.
    """
    batches = []
    for start in range(0, len(rows), batch_size):
        features = image_features(model, images[rows[start : start + batch_size]], preprocess, precision)
        similar = features @ classifier.T
        nearest = similar.argmax(dim=1, keepdim=True)
        among = similar.topk(min(TOP, similar.shape[1]), dim=1).indices
        batches.append(torch.cat([nearest, among], dim=1).cpu().numpy().astype(np.int32))
        on_done(min(start + batch_size, len(rows)))
    return np.concatenate(batches)
