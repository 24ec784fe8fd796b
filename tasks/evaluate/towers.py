"""Both towers without gradients: normalized features of images and of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from tasks.errors import UserError
from tasks.model import models
from tasks.model.datasets import ImageArray

if TYPE_CHECKING:
    from tasks.model.models import Clip

Precision = Literal["float32", "bfloat16", "float16"]
"""Of a tower's arithmetic; features are float32 whatever it is."""


@torch.inference_mode()
def image_features(
    model: Clip, images: np.ndarray, preprocess: models.Preprocess, precision: Precision = "float32"
) -> torch.Tensor:
    """Of one batch of uint8 images (N, H, W, 3): float32, shape (N, D), on the model's device.

    Raises:
        UserError: in float16, some features overflow.
    """
    device = model.logit_scale.device
    pixels = models.normalize(np.array(images), preprocess, device)
    with _arithmetic(device, precision):
        features = model.encode_image(pixels, normalize=True)
    return _float32(features, precision)


def feature_batches(
    model: Clip,
    images: ImageArray,
    rows: np.ndarray,
    preprocess: models.Preprocess,
    batch_size: int,
    precision: Precision = "float32",
) -> Iterator[torch.Tensor]:
    """As `image_features`, of some rows of a set's images, ``batch_size`` at a time."""
    for start in range(0, len(rows), batch_size):
        yield image_features(model, images[rows[start : start + batch_size]], preprocess, precision)


@torch.inference_mode()
def text_features(
    model: Clip,
    token_ids: torch.Tensor,
    batch_size: int,
    on_done: Callable[[int], None] | None = None,
    precision: Precision = "float32",
) -> torch.Tensor:
    """Of texts' tokens, int64 (N, L), in batches: float32, shape (N, D), on the model's device.

    ``on_done`` is called with the number of texts done so far.

    Raises:
        UserError: in float16, some features overflow.
    """
    device, features, done = model.logit_scale.device, [], 0
    for part in token_ids.split(batch_size):
        with _arithmetic(device, precision):
            encoded = models.text_features(model, part.to(device))
        features.append(_float32(encoded, precision))
        done += len(part)
        if on_done:
            on_done(done)
    return torch.cat(features)


def _arithmetic(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


def _float32(features: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Features as float32 unit vectors."""
    if precision == "float32":
        return features
    if precision == "float16" and not features.isfinite().all():
        raise UserError("evaluate.precision: the model's features overflow in float16; take bfloat16")
    return torch.nn.functional.normalize(features.float(), dim=-1)
