"""The probe: the images that a rotation is fitted on, drawn from what has arrived, never from test sets."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tasks import randomness
from tasks.errors import UserError
from tasks.model import models
from tasks.model.datasets import Dataset

if TYPE_CHECKING:
    from tasks.model.models import Clip, Preprocess, Tokenizer

POOLS = Path("data/history/pools")
ARRIVAL = Path("data/step/arrival")
BESIDE_EXPERT = "measure"
"""The folder beside an expert that arrives as a file: the data that the user names for it."""
BATCH = 64
"""Images that are encoded at a time: a constant, so that equal probes give equal bits."""


class Probe:
    """Samples of some data sets."""

    def __init__(self, pools: Mapping[str, Dataset], size: int, seed: int):
        """At most ``size`` samples of all pools, each equally likely: a function of seed, pools' names and sizes."""
        chances = {name: randomness.generator(seed, "probe", name).random(len(data)) for name, data in pools.items()}
        self._pools = list(pools.values())
        where = np.repeat(np.arange(len(pools)), [len(data) for data in self._pools])
        rows = np.concatenate([np.arange(len(data)) for data in self._pools]) if pools else np.zeros(0, np.int64)
        order = np.argsort(np.concatenate([*chances.values(), np.zeros(0)]), kind="stable")[:size]
        order.sort()  # by pool and row: images are read in the order in which they lie
        self._where, self._rows = where[order], rows[order]

    def __len__(self) -> int:
        return len(self._rows)

    def first(self, count: int) -> Probe:
        """Its first samples alone."""
        part = copy.copy(self)
        part._where, part._rows = self._where[:count], self._rows[:count]
        return part

    @torch.inference_mode()
    def texts(self, model: Clip, tokenize: Tokenizer, count: int) -> torch.Tensor:
        """Features of the captions of its first samples: unit vectors, float32, shape (n, D)."""
        pairs = zip(self._where[:count], self._rows[:count], strict=True)
        tokens = tokenize([self._pools[d].captions[row] for d, row in pairs])
        return models.text_features(model, tokens.to(model.logit_scale.device)).float().cpu()

    @torch.inference_mode()
    def features(self, model: Clip, how: Preprocess, on_done: Callable[[int], None]) -> torch.Tensor:
        """Of all its images: unit vectors, float32, shape (N, D)."""
        parts = []
        for start in range(0, len(self), BATCH):
            pairs = zip(self._where[start : start + BATCH], self._rows[start : start + BATCH], strict=True)
            pixels = models.normalize(
                np.stack([self._pools[d].images[row] for d, row in pairs]), how, model.logit_scale.device
            )
            parts.append(model.encode_image(pixels, normalize=True).float().cpu())
            on_done(min(start + BATCH, len(self)))
        return torch.cat(parts)


def drawn(project: Path, size: int, seed: int, arrived: str) -> Probe:
    """The probe of a step: from the pools of earlier arrivals, and from what has just arrived (named ``arrived``).

    Raises:
        UserError: there is no image.
    """
    names: list[str] = json.loads((project / POOLS / "pools.json").read_text(encoding="utf-8"))
    folders = {name: project / POOLS / name for name in names}
    for path in (project / ARRIVAL, project / ARRIVAL / BESIDE_EXPERT):
        if (path / "dataset.json").exists():
            folders[arrived] = path
    probe = Probe({name: Dataset(path) for name, path in folders.items()}, size, seed)
    if not len(probe):
        raise UserError(
            "deploy.compatible_with: there is no image to fit the rotation on; give the arrival some in stream: measure"
        )
    return probe
