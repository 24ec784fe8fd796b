"""Weights & Biases (WANDB_API_KEY, WANDB_BASE_URL, WANDB_MODE)."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tasks.track.tracker import Told, Tracker, attach


class WandB(Tracker):
    """A run of the project, resumed by an id of the timeline; metrics by step, params as its configuration.

    Each state is an artifact: its files by hash, its manifest and its training curve.
    """

    name: ClassVar[str] = "wandb"
    source: ClassVar[str] = "https://wandb.ai"
    module: ClassVar[str] = "wandb"

    def send(self, timeline: str, params: Mapping[str, str], states: Sequence[Told], folder: Path) -> None:
        import wandb

        identity = hashlib.sha256(f"{self.project}/{timeline}".encode()).hexdigest()[:16]
        # Offline, its own files are all that there is, until `wandb sync` sends them.
        run = wandb.init(
            project=self.project, name=timeline, id=identity, resume="allow", config=dict(params), dir=str(folder)
        )
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            for state in states:
                run.log(state.metrics, step=state.step)
                artifact = wandb.Artifact(f"{timeline}-{state.step:04d}", type="state", metadata={"tag": state.tag})
                run.log_artifact(attach(artifact, state, Path(scratch)))
            run.finish()
