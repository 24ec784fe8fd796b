"""What the model itself would say: classes drawn from its own probabilities, one a sample."""

from __future__ import annotations

import numpy as np
import torch

from tasks import randomness


def drawn_loss(logits: torch.Tensor, seed: int, sample: int) -> torch.Tensor:
    """−log p of a class drawn from p = softmax(logits), a scalar; with gradients.

    The expectation of its squared gradient is the diagonal of the Fisher information at this sample.

    Args:
        logits: (C,), or (T, C) for T classes, such as the tokens of a text: their log probabilities are summed.
        sample: the sample's number; with ``seed`` it decides what is drawn.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    log_p = torch.log_softmax(rows.double(), dim=-1)
    with torch.no_grad():
        until = log_p.exp().cumsum(dim=-1).cpu().numpy()
    uniform = randomness.generator(seed, "measure", "draw", sample).random(len(rows))
    classes = [int(np.searchsorted(row, u * row[-1], side="right")) for row, u in zip(until, uniform, strict=True)]
    chosen = torch.tensor(classes, device=logits.device).clamp_(max=rows.shape[-1] - 1)
    return -log_p.gather(1, chosen[:, None]).sum()
