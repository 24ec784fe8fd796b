"""A project folder of tiny synthetic data: coloured squares whose captions say their colours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.model import models
from tasks.model.datasets import Card, Sample, write
from tasks.params import Params

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (220, 220, 30)}


def dataset(folder: Path, count: int = 32, colours: Sequence[str] = tuple(COLOURS), noise: int = 0) -> None:
    """A prepared data set of ``count`` noisy squares."""
    random = np.random.default_rng(noise)

    def samples() -> Any:
        for i in range(count):
            colour = colours[i % len(colours)]
            image = np.array(COLOURS[colour]) + random.integers(-30, 30, (16, 16, 3))
            yield Sample(f"{colour}-{i}", image.clip(0, 255).astype(np.uint8), f"a {colour} square", i % len(colours))

    write(folder, Card(folder.name, 16, tuple(colours), "a {} square"), samples(), count)


def params(step: int = 0, **changes: Any) -> Params:
    """Params of a stream of two small arrivals; ``changes`` replace whole top-level keys."""
    raw: dict[str, Any] = {
        "timeline": "tiny",
        "threads": 1,
        "base": {
            "model": "model.json",
            "pretrained": "train",
            "train": {"steps": 6, "batch_size": 16, "lr": 1e-3},
            "pretraining": ["folder:base"],
        },
        "stream": [{"name": "first", "update": ["folder:first"]}, {"name": "second", "update": ["folder:second"]}],
        "train": {"steps": 4, "batch_size": 12},
        "evaluate": {
            "adaptation": [{"name": "seen", "test": ["folder:seen"]}],
            "retention": [{"name": "kept", "test": ["folder:kept"], "prompt": "one {} square"}],
        },
        "step": step,
    }
    return Params.model_validate({**raw, **changes})


def project(folder: Path) -> Path:
    """The folder as it is before the nodes of step 0 run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(CONFIG))
    models.resolve(params().base, folder, folder / "data/history/model")
    weights = folder / "data/history/weights"
    weights.mkdir(parents=True)
    (weights / "lineage.json").write_text('{"step": 0}\n')
    pools = folder / "data/history/pools"
    pools.mkdir()
    (pools / "pools.json").write_text("[]\n")
    (folder / "data/history/regularizer").mkdir()
    (folder / "data/history/regularizer/regularizer.json").write_text('{"name": null}\n')
    dataset(folder / "data/step/arrival")
    dataset(folder / "data/step/evaluation/seen", 8, noise=1)
    dataset(folder / "data/step/evaluation/kept", 6, ("blue", "yellow"), noise=2)
    return folder
