"""How one expert is trained: every setting of the loop in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tasks.train.schedule import MetaSchedule, Schedule

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Recipe:
    """TIME's recipe (arXiv 2412.06712, section 4) and its free settings."""

    steps: int
    batch_size: int
    lr: float
    """Peak of the schedule."""
    weight_decay: float
    warmup: float
    """Fraction of the steps."""
    clip: float
    """Largest norm of the gradient."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    meta_schedule: MetaSchedule = "constant"
    earlier: int = 0
    """Time steps before this one."""
    loss: Literal["clip", "siglip"] = "clip"
    precision: Precision = "float32"
    """Of both towers' arithmetic; weights, loss and optimizer stay in float32."""
    checkpointing: bool = False
    """Whether activations are computed again in the backward pass instead of stored."""
    accumulate: int = 1
    """Parts that a batch is computed in, for less memory; the loss is that of the whole batch."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    skip_at_most: int = 10
    """Training steps that may be skipped before training stops."""

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.lr, self.warmup, self.meta_schedule, self.earlier)
