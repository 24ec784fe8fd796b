"""The contrastive loss of CLIP (arXiv 2103.00020, figure 3), where equal captions are positives of each other."""

from __future__ import annotations

import torch
from torch.nn import functional


def contrastive_loss(
    image_features: torch.Tensor, text_features: torch.Tensor, logit_scale: torch.Tensor, captions: torch.Tensor
) -> torch.Tensor:
    """Symmetric cross-entropy between images and captions, a scalar.

    Features are normalized, shape (N, D); ``logit_scale`` is the factor itself, not its logarithm; ``captions`` are
    int64 identities, shape (N,). A row's target is uniform over the entries with its own caption; where all captions
    differ that is open_clip's ``ClipLoss``.
    """
    logits = logit_scale * image_features @ text_features.T
    equal = (captions[:, None] == captions[None, :]).to(logits.dtype)
    targets = equal / equal.sum(dim=1, keepdim=True)
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2
