"""AdamW as open_clip trains with it: one fused optimizer, with weight decay only on matrices."""

from __future__ import annotations

import torch


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Weight decay is for matrices: not for gains, biases, norms, the temperature or anything else below 2-d."""
    return parameter.ndim >= 2 and not any(part in name for part in ("bn", "ln", "bias", "logit_scale"))


def adamw(
    model: torch.nn.Module, weight_decay: float, betas: tuple[float, float] = (0.9, 0.98), eps: float = 1e-6
) -> torch.optim.AdamW:
    """AdamW over what trains, in two groups; the learning rate is set before every step."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": weight_decay},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)
