"""Weights & Biases (WANDB_API_KEY, WANDB_BASE_URL, WANDB_MODE)."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import ClassVar

from tasks.track.tracker import Told, Tracker


class WandB(Tracker):
    """A run of the project, resumed by an id of the timeline; metrics by step, params as its configuration."""

    name: ClassVar[str] = "wandb"
    source: ClassVar[str] = "https://wandb.ai"
    module: ClassVar[str] = "wandb"

    def send(self, timeline: str, params: Mapping[str, str], states: Sequence[Told]) -> None:
        import wandb

        identity = hashlib.sha256(f"{self.project}/{timeline}".encode()).hexdigest()[:16]
        with tempfile.TemporaryDirectory() as scratch:
            run = wandb.init(
                project=self.project, name=timeline, id=identity, resume="allow", config=dict(params), dir=scratch
            )
            for state in states:
                run.log(state.metrics, step=state.step)
                run.summary[f"{state.tag}/files"] = state.files
            run.finish()
