"""Whole timelines of models that are no transformers: a ResNet, whose BatchNorm has statistics, and a ConvNeXt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import project as projects

pytestmark = pytest.mark.slow

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 4, "head_width": 16, "patch_size": None}
CONVNEXT = {
    "timm_model_name": "test_convnext", "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "linear",
    "image_size": 32,
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("tower", [pytest.param(RESNET, id="resnet"), pytest.param(CONVNEXT, id="convnext")])
def test_a_timeline_of_a_convolutional_model(
    tower: dict[str, Any], tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    """Under a sum of task vectors that is scaled up, which would make variances negative."""
    folder = projects.make(
        tmp_path / "project",
        base={**projects.PARAMS["base"], "train": {"steps": 2, "batch_size": 16, "lr": 1e-3}},
        train={"steps": 2, "batch_size": 12},
        time={"init": "zs", "deploy": "all", "technique": {"name": "task_arithmetic", "scale": 1.5}},
    )
    (folder / "tiny.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": tower, "text_cfg": TEXT}))
    projects.git(folder, "commit", "--quiet", "--all", "--message", "another model")
    projects.chronomerge(folder, "run", **prefect_api)
    projects.chronomerge(folder, "restore", "2", "--to", str(tmp_path / "restored"))
    deployed = load_file(tmp_path / "restored/data/step/deployed.safetensors")
    assert all(np.isfinite(value).all() for value in deployed.values() if value.dtype.kind == "f")
    variances = {name: value for name, value in deployed.items() if name.endswith("running_var")}
    assert bool(variances) == (tower is RESNET)
    assert all((value >= 0).all() for value in variances.values())
    metrics = json.loads((tmp_path / "restored/metrics.json").read_text())
    assert 0 <= metrics["A_ZS"] <= 100
