"""Codecs with loss, by hand and against what they say of themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import UserError
from tasks.model import checkpoints, codec, coded
from tasks.model.codecs import ternary
from tasks.params import Named


def through(folder: Path, change: dict[str, list[float]], **chosen: Any) -> tuple[dict[str, list[float]], coded.Coding]:
    """What a codec makes of changes to a base of ones; and its header."""
    base = {name: torch.ones(len(values)) for name, values in change.items()}
    checkpoints.save(folder / "base.safetensors", base)
    expert = {name: base[name] + torch.tensor(values) for name, values in change.items()}
    checkpoints.save(folder / "expert.safetensors", expert)
    about = coded.encode(
        codec.chosen(Named.model_validate(chosen)), folder / "expert.safetensors", folder / "base.safetensors",
        folder / "expert.weights",
    )  # fmt: skip
    weights = coded.load(folder / "expert.weights", folder / "base.safetensors")
    return {name: (weights[name] - 1).tolist() for name in change}, about


def test_compeft_by_hand(tmp_path: Path) -> None:
    """τ = [4, −3, 1, 0], half of it, alpha 1: the standard deviation is 2.887."""
    changed, about = through(tmp_path, {"w": [4, -3, 1, 0]}, name="ternary", density=0.5, alpha=1)
    assert changed["w"] == pytest.approx([2.88675, -2.88675, 0, 0], abs=1e-5)
    lost = [4 - 2.88675, -3 + 2.88675, 1, 0]
    assert about.error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm([4, -3, 1, 0]), rel=1e-3)


def test_without_alpha_the_scale_is_the_mean_size_of_what_stays(tmp_path: Path) -> None:
    assert through(tmp_path, {"w": [4, -3, 1, 0]}, name="ternary", density=0.5)[0]["w"] == [3.5, -3.5, 0, 0]


def test_the_scope_is_the_model_or_each_tensor(tmp_path: Path) -> None:
    change = {"large": [8.0, 6.0, 1.0, 1.0], "small": [0.5, -0.25, 0.125, 0.125]}
    of_model, _ = through(tmp_path, change, name="ternary", density=0.25)
    assert of_model == {"large": [7, 7, 0, 0], "small": [0, 0, 0, 0]}
    of_tensor, _ = through(tmp_path, change, name="ternary", density=0.5, scope="tensor")
    assert of_tensor == {"large": [7, 7, 0, 0], "small": [0.375, -0.375, 0, 0]}


def test_an_unchanged_expert_stays_the_base(tmp_path: Path) -> None:
    changed, about = through(tmp_path, {"w": [0.0] * 5}, name="ternary")
    assert (changed["w"], about.error) == ([0.0] * 5, 0.0)


def test_an_expert_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tensor 'w' is not finite"):
        through(tmp_path, {"w": [1.0, float("nan")]}, name="ternary")
    assert not (tmp_path / "expert.weights").exists()


@pytest.mark.parametrize(("density", "bits"), [(0.05, 0.34), (0.1, 0.58), (0.2, 0.94), (0.5, 1.5)])
def test_the_entropy_coder_reaches_the_bits_of_the_specification(density: float, bits: float) -> None:
    random = np.random.default_rng(0)
    at = np.flatnonzero(random.random(1 << 18) < density)
    data = ternary._packed(at, random.random(len(at)) < 0.5)
    assert 8 * len(data) / (1 << 18) == pytest.approx(bits, abs=0.03)


@settings(max_examples=200, deadline=None)
@given(st.sets(st.integers(0, 5000)), st.randoms(use_true_random=False))
def test_the_entropy_coder_gives_back_any_places_and_signs(places: set[int], random: Any) -> None:
    at = np.array(sorted(places), np.int64)
    negative = np.array([random.random() < 0.5 for _ in at], np.bool_)
    back, signs = ternary._unpacked(ternary._packed(at, negative), 5001)
    assert back.tolist() == at.tolist()
    assert signs.tolist() == negative.tolist()


def test_signs_by_hand_with_what_has_not_changed(tmp_path: Path) -> None:
    change = {"some": [4.0, -2.0, 0.0, 0.0], "all": [1.0, 3.0, -2.0], "none": [0.0]}
    changed, about = through(tmp_path, change, name="signs")
    assert changed == {"some": [3, -3, 0, 0], "all": [2, 2, -2], "none": [0]}
    lost = [1, 1, 0, 0, 1, 1, 0, 0]
    assert about.error == pytest.approx(
        np.linalg.norm(lost) / np.linalg.norm([*change["some"], *change["all"]]), rel=1e-3
    )


def test_signs_take_a_bit_an_entry(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(1 << 17).tolist()
    through(tmp_path, {"w": values}, name="signs")
    assert 8 * (tmp_path / "expert.weights").stat().st_size / (1 << 17) == pytest.approx(1, abs=0.05)
