"""Folding into real open_clip models, and which of them are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from tasks.deploy import folding
from tasks.errors import UserError
from tasks.model import models
from tests.train.project import CONFIG


def folder(into: Path, **text: Any) -> Path:
    vision = text.pop("vision", CONFIG["vision_cfg"])
    config = {**CONFIG, "vision_cfg": vision, "text_cfg": {**CONFIG["text_cfg"], **text}}  # type: ignore[dict-item]
    custom = {"custom_text": True} if text else {}
    (into / "model.json").write_text(json.dumps({"name": "tiny", "model_cfg": {**config, **custom}}))
    return into


TIMM = {"image_size": 32, "timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear"}


@pytest.mark.parametrize("settings", [{}, {"pool_type": "last"}, {"vision": TIMM}], ids=["clip", "custom", "timm"])
def test_similarities_inside_the_model_stay(settings: dict[str, Any], tmp_path: Path) -> None:
    """Of images with texts, and of images with images; and images are where the rotation takes them."""
    model = models.build(folder(tmp_path, **settings)).eval()
    side = 32 if "vision" in settings else 16
    pixels, tokens = torch.randn(5, 3, side, side), torch.randint(1, 400, (4, 12))
    tokens[:, -1] = 49407
    turn = torch.from_numpy(ortho_group.rvs(16, random_state=0))
    with torch.inference_mode():
        before = [model.encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)]
        towers = folding.projections(model)
        model.load_state_dict(folding.folded(model.state_dict(), towers, turn))
        after = [model.encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)]
    assert np.abs((after[0] @ after[1].T - before[0] @ before[1].T).numpy()).max() < 1e-6
    assert np.abs((after[0] @ after[0].T - before[0] @ before[0].T).numpy()).max() < 1e-6
    assert np.abs((after[0] - before[0] @ turn.float()).numpy()).max() < 1e-6


def test_half_precision_projections_become_float32() -> None:
    weights = {"visual.proj": torch.ones(2, 2, dtype=torch.float16), "text_projection": torch.ones(2, 2).double()}
    towers = (folding.Projection("visual.proj", False), folding.Projection("text_projection", False))
    made = folding.folded(weights, towers, torch.eye(2, dtype=torch.float64))
    assert (made["visual.proj"].dtype, made["text_projection"].dtype) == (torch.float32, torch.float64)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"proj_bias": True}, r"the text tower ends in a projection with a bias \(text.text_projection.bias\)"),
        ({"proj_type": "none"}, "the text tower ends in no projection"),
        ({"vision": {**TIMM, "timm_proj": "mlp"}}, r"the image tower ends in several layers"),
        ({"vision": {**TIMM, "timm_proj_bias": True}}, r"the image tower ends in a projection with a bias"),
        (
            {"vision": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}},
            r"the image tower ends in a projection with a bias \(visual.attnpool.c_proj.bias\)",
        ),
    ],
)
def test_other_models_are_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as refused:
        folding.of_folder(folder(tmp_path, **settings))
    assert "\n" not in str(refused.value)


def test_a_text_tower_with_an_mlp_is_refused() -> None:
    """As open_clip builds it on a model of transformers, which is not downloaded here."""
    model = torch.nn.Module()
    model.visual = torch.nn.Module()
    model.visual.proj = torch.nn.Parameter(torch.zeros(4, 2))
    model.text = torch.nn.Module()
    model.text.proj = torch.nn.Sequential(
        torch.nn.Linear(4, 3, bias=False), torch.nn.GELU(), torch.nn.Linear(3, 2, bias=False)
    )
    with pytest.raises(UserError, match=r"ends in several layers after one another \(text.proj.0.weight"):
        folding.projections(model)  # type: ignore[arg-type]
