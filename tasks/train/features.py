"""Both towers on one batch, leaving out the part of the text context that cannot matter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.func import functional_call

if TYPE_CHECKING:
    from tasks.models import Clip


def features(model: Clip, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalized features of images (N, 3, H, W) and of their captions' tokens (N, L): two tensors (N, D).

    Where the text tower is causal and reads its feature at the end-of-text token (open_clip's ``CLIP``), positions
    after the batch's longest caption influence neither features nor gradients: they are not computed.
    """
    if getattr(model, "text_pool_type", None) != "argmax" or model.attn_mask is None:
        return model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
    length = int(tokens.argmax(dim=1).max()) + 1  # the end-of-text token has the largest id
    shorter = {
        "positional_embedding": model.positional_embedding[:length],
        "attn_mask": model.attn_mask[:length, :length],
    }
    image_features, text_features, *_ = functional_call(model, shorter, (images, tokens[:, :length]))
    return image_features, text_features
