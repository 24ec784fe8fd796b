"""Time steps of a tiny model without a flow: weights and images are random, each step's history is the last one's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tasks.fit.node import fit
from tasks.merge.node import deploy
from tasks.model import datasets, models
from tasks.model.datasets import Card, Sample
from tasks.params import Base, Params
from tests.project import MODEL, PARAMS

CLASSES = ("cat", "dog", "fox")


def params(step: int, *, method: Any, **changes: Any) -> Params:
    given = {
        **PARAMS, "step": step, "arrival": {"name": f"a{step}", "update": ["images:x"]}, "fit": method,
        "train": {**PARAMS["train"], "holdout": 0.4}, **changes,
    }  # fmt: skip
    return Params.model_validate(given)


def project(folder: Path) -> Path:
    """A project before step 1: a model, a base, and a pretraining pool."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.json").write_text(json.dumps(MODEL))
    history = folder / "data/history"
    models.resolve(Base(model="tiny.json", pretrained="base.safetensors"), folder, history / "model")
    for name in ("base", "running/ema"):
        weights(folder, 0, history / f"weights/{name}.safetensors")
    data(history / "pools/pretraining", 100)
    (history / "pools/pools.json").write_text('["pretraining"]')
    return folder


def weights(project: Path, seed: int, out: Path, near: float = 0.3) -> None:
    """The base for seed 0, else a model near to it."""
    made = []
    for each in (0, seed):
        torch.manual_seed(each)
        made.append(models.build(project / "data/history/model").state_dict())
    base, other = made
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.lerp(value, other[name], near).contiguous() for name, value in base.items()}, out)


def data(folder: Path, seed: int, classes: tuple[str, ...] = CLASSES, count: int = 30) -> None:
    """Images whose classes differ in brightness, or captions alone."""
    random = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        image = np.clip(random.integers(0, 100, (16, 16, 3)) + 60 * (i % 3), 0, 255).astype(np.uint8)
        samples.append(Sample(f"{i}", image, f"caption {i % 7}", i % len(classes) if classes else -1))
    shutil.rmtree(folder, ignore_errors=True)
    datasets.write(folder, Card(name=folder.name, image_size=16, classes=classes), samples, count)


def prepare(project: Path, step: int, classes: tuple[str, ...] = CLASSES) -> None:
    """The expert and the data of a step, which is the step-th expert."""
    weights(project, step, project / "data/step/expert.safetensors")
    data(project / "data/step/arrival", step, classes)
    (project / "data/history/weights/lineage.json").write_text(json.dumps({"step": step}))


def hand_on(project: Path, step: int) -> None:
    """What `tasks.record.history` does between two steps."""
    now, history = project / "data/step", project / "data/history"
    shutil.rmtree(history / "weights/running", ignore_errors=True)
    shutil.copytree(now / "running", history / "weights/running")
    shutil.copy(now / "deployed.safetensors", history / "weights/deployed.safetensors")
    (history / "weights/experts").mkdir(exist_ok=True)
    shutil.copy(now / "expert.safetensors", history / f"weights/experts/{step:04}.safetensors")
    shutil.copytree(now / "arrival", history / f"pools/a{step}")
    names = json.loads((history / "pools/pools.json").read_text())
    (history / "pools/pools.json").write_text(json.dumps([*names, f"a{step}"]))


def run(project: Path, steps: int, method: Any, classes: tuple[str, ...] = CLASSES, **changes: Any) -> dict[str, Any]:
    """Steps 1 … ``steps`` through fit and deploy; the last one's ``fit.json``."""
    for step in range(1, steps + 1):
        if step > 1:
            hand_on(project, step - 1)
        prepare(project, step, classes)
        now = params(step, method=method, **changes)
        fit(project, now)
        deploy(project, now)
    found: dict[str, Any] = json.loads((project / "data/step/fit/fit.json").read_text())
    return found
