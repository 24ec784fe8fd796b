"""One mask for all task vectors: its gradient, the cases by hand, and what is deployed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tasks.fit.methods.concrete import by_logits, median, normalized, relaxed
from tasks.fit.node import fit
from tasks.merge import merge
from tests.fit import steps
from tests.flows.test_fitted import example

CONCRETE = {"name": "concrete", "iterations": 6, "every": 2, "lr": 0.2}
EMA = {"init": "zs", "deploy": "ema", "technique": {"name": "linear", "weight": 0.5}}
ALL = {"init": "zs", "deploy": "all", "technique": {"name": "task_arithmetic", "scale": 0.3}}


def test_masks_by_hand() -> None:
    """u = ½, x = 0: m̂ = 1, plain task arithmetic. u = σ(1), x = 0: m = σ(2) = 0.881."""
    half, one = torch.full((3,), 0.5), torch.full((3,), 1 / (1 + math.exp(-1)), dtype=torch.float64)
    assert normalized(relaxed(torch.zeros(3), half)).tolist() == [1, 1, 1]
    assert normalized(median(torch.zeros(3))).tolist() == [1, 1, 1]
    assert relaxed(torch.zeros(3), one)[0].item() == pytest.approx(0.881, abs=5e-4)


def test_the_gradient_by_the_logits_is_autograds() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    uniform, total, base = torch.rand(4, 5), torch.randn(4, 5).double(), torch.randn(4, 5).double()
    theta = base + normalized(relaxed(x, uniform)) * total
    theta.retain_grad()
    torch.sin(theta).sum().backward()  # type: ignore[no-untyped-call]
    assert theta.grad is not None
    assert x.grad is not None
    found = by_logits(theta.grad, total, relaxed(x.detach(), uniform))
    torch.testing.assert_close(found.double(), x.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("time", [EMA, ALL], ids=["ema", "all"])
def test_what_is_deployed_is_the_masked_sum(time: dict[str, Any], tmp_path: Path) -> None:
    project = steps.project(tmp_path)
    found = steps.run(project, 2, CONCRETE, time=time)
    assert found["fitted"]["models"] == ["data/step/fit/masked.safetensors"]
    masked = load_file(project / "data/step/fit/masked.safetensors")
    deployed = load_file(project / "data/step/deployed.safetensors")
    for name, tensor in masked.items():
        torch.testing.assert_close(deployed[name], tensor, rtol=1e-6, atol=1e-7)
    out = project / "data/step/fit"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    fit(project, steps.params(2, method=CONCRETE, time=time))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_with_a_mask_that_has_learned_nothing_it_is_task_arithmetic(tmp_path: Path) -> None:
    project = steps.project(tmp_path)
    steps.run(project, 2, {**CONCRETE, "lr": 1e-30}, time=ALL)
    history = project / "data/history/weights"
    merge(
        "task_arithmetic", [history / "experts/0001.safetensors", project / "data/step/expert.safetensors"],
        history / "base.safetensors", project / "by-hand.safetensors", settings={"scale": 0.3},
    )  # fmt: skip
    expected, found = (load_file(project / name) for name in ("by-hand.safetensors", "data/step/deployed.safetensors"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)


def test_the_guides_example_learns_a_mask(tmp_path: Path) -> None:
    given = example(3)
    found = steps.run(steps.project(tmp_path), 1, {**given["fit"], "iterations": 2}, time=given["time"])
    assert found["report"]["method"] == "concrete"
