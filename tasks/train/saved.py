"""Training checkpoints: one file with weights, optimizer, scaler, curve and position, replaced atomically."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tasks.errors import UserError
from tasks.model import checkpoints

if TYPE_CHECKING:
    from tasks.train.loop import Training


class Saved:
    """The last saved training in a folder that outlives a killed run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / "training.safetensors"

    def save(self, training: Training) -> None:
        """Store ``training`` between two steps, in place of the last checkpoint."""
        tensors = {f"weights.{name}": t for name, t in training.model.state_dict().items()}
        for name, parameter in training.model.named_parameters():
            for key, value in training.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        if training.pull:
            tensors |= {f"pull.{name}": t for name, t in training.pull.tensors().items()}
        tensors["curve"] = torch.tensor([astuple(point) for point in training.curve], dtype=torch.float64)
        facts = {
            "done": training.done,
            "skipped": training.skipped,
            "decay": training.decay,
            "scaler": training.scaler.state_dict(),
        }
        checkpoints.save(self.path, tensors, {"training": json.dumps(facts)})

    def load(self, training: Training) -> None:
        """Load the checkpoint into ``training``, which stays at its start if that is missing or damaged."""
        from tasks.train.loop import Point

        try:
            tensors = checkpoints.load(self.path)
        except UserError:  # missing or damaged: training starts again
            return
        facts = json.loads(checkpoints.metadata(self.path)["training"])
        training.model.load_state_dict(
            {n.removeprefix("weights."): t for n, t in tensors.items() if n.startswith("weights.")}
        )
        if training.pull:
            training.pull.load({n.removeprefix("pull."): t for n, t in tensors.items() if n.startswith("pull.")})
        named = {name: p for name, p in training.model.named_parameters() if p.requires_grad}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, key, of = name.split(".", 2)
                training.optimizer.state[named[of]][key] = tensor.to(training.device)
        training.curve = [Point(int(row[0]), *row[1:]) for row in tensors["curve"].tolist()]
        training.done, training.skipped, training.decay = facts["done"], facts["skipped"], facts["decay"]
        if facts["scaler"]:
            training.scaler.load_state_dict(facts["scaler"])
