"""The losses over a batch's features, where equal captions are positives of each other."""

from __future__ import annotations

import torch
from torch.nn import functional


def contrastive_loss(
    image_features: torch.Tensor, text_features: torch.Tensor, logit_scale: torch.Tensor, captions: torch.Tensor
) -> torch.Tensor:
    """CLIP's symmetric cross-entropy between images and captions (arXiv 2103.00020, figure 3), a scalar.

    Features are normalized, shape (N, D); ``logit_scale`` is the factor itself, not its logarithm; ``captions`` are
    int64 identities, shape (N,). A row's target is uniform over the entries with its own caption; where all captions
    differ that is open_clip's ``ClipLoss``.
    """
    logits = logit_scale * image_features @ text_features.T
    equal = _equal(captions).to(logits.dtype)
    targets = equal / equal.sum(dim=1, keepdim=True)
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


def sigmoid_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    captions: torch.Tensor,
) -> torch.Tensor:
    """SigLIP's loss (arXiv 2303.15343, section 3.1): each pair a binary classification; summed, over N, a scalar.

    Arguments as for `contrastive_loss`; where all captions differ it is open_clip's ``SigLipLoss``.
    """
    logits = logit_scale * image_features @ text_features.T + logit_bias
    labels = 2 * _equal(captions).to(logits.dtype) - 1
    return -functional.logsigmoid(labels * logits).sum() / len(logits)


def _equal(captions: torch.Tensor) -> torch.Tensor:
    return captions[:, None] == captions[None, :]
