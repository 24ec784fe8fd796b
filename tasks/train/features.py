"""Both towers on one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.model import models

if TYPE_CHECKING:
    import torch

    from tasks.model.models import Clip


def features(model: Clip, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalized features of images (N, 3, H, W) and of their captions' tokens (N, L): two tensors (N, D)."""
    return model.encode_image(images, normalize=True), models.text_features(model, tokens)
