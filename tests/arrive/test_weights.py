"""An expert is compared with the base: every tensor that does not fit is named, and nothing trained is no expert."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.model import checkpoints, models
from tasks.params import Base
from tasks.train.node import random_weights
from tests.arrive.conftest import PARAMS, Arrive, tree

Weights = dict[str, torch.Tensor]
BIAS = "visual.ln_post.bias"


@pytest.fixture(scope="module")
def base(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = tmp_path_factory.mktemp("base") / "model"
    models.resolve(Base(model="tiny.json", pretrained="x.safetensors"), empty, folder)
    return random_weights(folder, 0)


@pytest.fixture
def vendor(project: Path, base: Weights, tmp_path: Path) -> Callable[..., Path]:
    """An expert on the base, which the project has as a file, with some tensors changed."""
    checkpoints.save(project / "base.safetensors", base)
    start, end = PARAMS.index("base:"), PARAMS.index("stream:")
    (project / "params.yaml").write_text(
        f"{PARAMS[:start]}base: {{model: tiny.json, pretrained: base.safetensors}}\n{PARAMS[end:]}"
    )

    def make(shift: float = 0.01, **changes: torch.Tensor | None) -> Path:
        weights = {name: tensor + shift if tensor.is_floating_point() else tensor for name, tensor in base.items()}
        weights |= {name.replace("_dot_", "."): tensor for name, tensor in changes.items() if tensor is not None}
        save_file(weights, tmp_path / "vendor.safetensors")
        return tmp_path / "vendor.safetensors"

    return make


def test_an_expert_that_fits(arriving: Arrive, vendor: Callable[..., Path], project: Path) -> None:
    given = vendor()
    verdict = arriving("vendor", expert=given)
    assert verdict.outcome == "arrived"
    assert verdict.arrival == {"name": "vendor", "expert": "data/arrivals/vendor/expert.safetensors"}
    assert 0 < verdict.facts["task vector's norm, relative to the base's:"] < 1
    assert verdict.facts["tensors changed"] == verdict.facts["tensors"] - sum(
        not tensor.is_floating_point() for tensor in load_file(given).values()
    )
    assert (project / "data/arrivals/vendor/expert.safetensors").read_bytes() == given.read_bytes()


def test_all_that_does_not_fit(arriving: Arrive, vendor: Callable[..., Path], base: Weights, project: Path) -> None:
    spoilt = base["visual.proj"].clone()
    spoilt.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    given = vendor(visual_dot_proj=spoilt, more=torch.zeros(2), text_projection=torch.zeros(3, 5))
    weights = load_file(given)
    del weights[BIAS]
    weights["ln_final.bias"] = weights["ln_final.bias"].to(torch.int32)
    save_file(weights, given)
    before = tree(project)
    problems = arriving("vendor", expert=given).problems
    assert len(problems) == 5
    text = "\n".join(problems)
    assert f"vendor: lacks 1 tensor ({BIAS}) that the base has; is it of another architecture?" in text
    assert "vendor: has 1 tensor (more) that the base lacks" in text
    assert f"'visual.proj': 3 of {spoilt.numel()} values are not finite" in text
    assert "'text_projection' has shape [3, 5], the base has [16, 16]" in text
    assert "'ln_final.bias' holds int32, the base has float32" in text
    assert tree(project) == before


def test_what_is_the_base(arriving: Arrive, vendor: Callable[..., Path]) -> None:
    (problem,) = arriving("vendor", expert=vendor(0), dry_run=True).problems
    assert problem == "vendor: is the base, value for value: nothing was trained"
    far = arriving("vendor", expert=vendor(100), dry_run=True)
    assert "does it come from it?" in far.notes[0]


def test_names_with_a_word_in_front_are_taken_off(arriving: Arrive, vendor: Callable[..., Path]) -> None:
    given = vendor()
    save_file({f"model.{name}": tensor for name, tensor in load_file(given).items()}, given)
    assert arriving("vendor", expert=given, dry_run=True).outcome == "would arrive"


def test_half_precision_and_a_torch_file(arriving: Arrive, vendor: Callable[..., Path], tmp_path: Path) -> None:
    weights = {name: tensor.half() for name, tensor in load_file(vendor()).items() if tensor.is_floating_point()}
    torch.save({"state_dict": {**load_file(tmp_path / "vendor.safetensors"), **weights}}, tmp_path / "v.pt")
    verdict = arriving("vendor", expert=tmp_path / "v.pt", dry_run=True)
    assert verdict.outcome == "would arrive"
    assert verdict.notes == ("some of its tensors are stored as float16, and become float32",)


def test_before_the_base_is_trained_only_the_form_counts(arriving: Arrive, base: Weights, tmp_path: Path) -> None:
    save_file(base, tmp_path / "e.safetensors")
    verdict = arriving("vendor", expert=tmp_path / "e.safetensors", dry_run=True)
    assert verdict.outcome == "would arrive"
    assert verdict.notes == ("compared with the base by names and shapes alone: it is not trained yet",)


def test_a_file_that_is_no_checkpoint(arriving: Arrive, tmp_path: Path) -> None:
    (tmp_path / "e.safetensors").write_bytes(b"short")
    (problem,) = arriving("vendor", expert=tmp_path / "e.safetensors", dry_run=True).problems
    assert "a text file, not a safetensors file" in problem
    (problem,) = arriving("vendor", expert=tmp_path / "none.pt", dry_run=True).problems
    assert "no such file" in problem
