"""Both towers without gradients: normalized features of images and of texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from tasks.model import models

if TYPE_CHECKING:
    from tasks.model.models import Clip


@torch.inference_mode()
def image_features(model: Clip, images: np.ndarray, preprocess: models.Preprocess) -> torch.Tensor:
    """Of one batch of uint8 images (N, H, W, 3): float32, shape (N, D), on the model's device."""
    pixels = models.normalize(np.array(images), preprocess, model.logit_scale.device)
    return model.encode_image(pixels, normalize=True)


@torch.inference_mode()
def text_features(
    model: Clip, token_ids: torch.Tensor, batch_size: int, on_done: Callable[[int], None] | None = None
) -> torch.Tensor:
    """Of texts' tokens, int64 (N, L), in batches: float32, shape (N, D), on the model's device.

    ``on_done`` is called with the number of texts done so far.
    """
    device, features, done = model.logit_scale.device, [], 0
    for part in token_ids.split(batch_size):
        features.append(models.text_features(model, part.to(device)))
        done += len(part)
        if on_done:
            on_done(done)
    return torch.cat(features)
