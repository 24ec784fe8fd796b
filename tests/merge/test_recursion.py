"""What is said of an EMA recursion before it starts, against what the recursion does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tasks.errors import UserError
from tasks.merge import check, create, merge
from tasks.params import Time

LEARNED = np.ones(400, np.float32)


def lengths(name: str, settings: dict[str, Any], init: str, steps: int, *, again: bool = False) -> list[float]:
    """Mean |τ| of the running model over the steps; experts learn at the first one, or the same ``again`` at each."""
    zero = {"w": np.zeros_like(LEARNED)}
    running, found = zero, []
    for step in range(steps):
        new = (running if init == "ema" else zero)["w"] + LEARNED * np.float32(again or step == 0)
        merged = merge(name, [{"w": new}, running], zero, settings=settings).tensors
        assert merged is not None
        running = merged
        found.append(float(np.abs(running["w"]).mean()))
    return found


def said(name: str, settings: dict[str, Any], init: str) -> list[str]:
    return create(name, settings).recursion(trained_from_running=init == "ema")


FULL = {"density": 1.0}
BANDED = {"density": 1.0, "gamma": 0.0}

DIVERGES: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("task_arithmetic", {"scale": 0.6}, "ema", "1.2", "0.5"),
    ("task_arithmetic", {"scale": -0.6}, "ema", "1.2", "0.5"),
    ("task_arithmetic", {"scale": 1.25}, "zs", "1.25", "1"),
    ("task_arithmetic", {"scale": 1.5, "weight": 0.2}, "ema", "1.5", "1"),
    ("task_arithmetic", {"scale": 1.5, "weight": 0.2}, "zs", "1.2", "1.25"),
    ("task_arithmetic", {"scale": 1.2, "normalize": True}, "ema", "1.2", "1"),
    ("task_arithmetic", {"scale": 2.2, "normalize": True}, "zs", "1.1", "2"),
    ("breadcrumbs", {**BANDED, "scale": 0.75}, "ema", "1.5", "0.5"),
    ("dare_linear", {**FULL, "scale": 0.6}, "ema", "1.2", "0.5"),
    ("ties", {**FULL, "scale": 1.1}, "ema", "1.1", "1"),
    ("ties", {**FULL, "scale": 1.1}, "zs", "1.1", "1"),
    ("ties", {**FULL, "scale": 0.75, "normalize": False}, "ema", "1.5", "0.5"),
    ("della", {**FULL, "epsilon": 0.0}, "ema", "2", "0.5"),
    ("breadcrumbs_ties", {**BANDED, "scale": 1.5}, "ema", "1.5", "1"),
]


@pytest.mark.parametrize(("name", "settings", "init", "gain", "limit"), DIVERGES)
def test_what_is_refused_diverges_by_the_factor_named(
    name: str, settings: dict[str, Any], init: str, gain: str, limit: str
) -> None:
    with pytest.raises(UserError, match=rf"^{name}: .* by {gain} at every .*; use a scale of at most {limit}, or lin"):
        said(name, settings, init)
    before, after = lengths(name, settings, init, 20)[-2:]
    assert after / before == pytest.approx(float(gain), rel=1e-3)


BOUNDED: list[tuple[str, dict[str, Any], str]] = [
    ("task_arithmetic", {"scale": 0.5}, "ema"),
    ("task_arithmetic", {"scale": 0.5}, "zs"),
    ("task_arithmetic", {"scale": 1.0, "weight": 0.3}, "ema"),
    ("task_arithmetic", {"scale": 1.0, "weight": 0.3}, "zs"),
    ("task_arithmetic", {"scale": 1.0, "normalize": True}, "ema"),
    ("task_arithmetic", {"scale": 1.0, "normalize": True}, "zs"),
    ("breadcrumbs", {**BANDED, "scale": 0.5}, "ema"),
    ("dare_linear", {**FULL, "scale": 0.5}, "ema"),
    ("dare_ties", FULL, "ema"),
    ("ties", FULL, "ema"),
    ("ties", FULL, "zs"),
    ("ties", {**FULL, "scale": 0.5, "normalize": False}, "zs"),
    ("della", {**FULL, "epsilon": 0.0, "scale": 0.5}, "ema"),
    ("breadcrumbs_ties", BANDED, "zs"),
    ("task_arithmetic", {"scale": 1.0, "lines": {"alpha": 0.25, "beta": 0.25}}, "ema"),
]


@pytest.mark.parametrize(("name", "settings", "init"), BOUNDED)
def test_at_the_boundary_nothing_is_said_and_nothing_grows(name: str, settings: dict[str, Any], init: str) -> None:
    assert said(name, settings, init) == []
    assert max(lengths(name, settings, init, 20, again=init == "zs")) <= 1 + 1e-5


def test_between_task_vectors_add_up_to_the_length_named() -> None:
    (warning,) = said("task_arithmetic", {"scale": 0.6}, "zs")
    assert "grows up to 1.5 times an expert's length; a scale of at most 0.5 keeps" in warning
    assert lengths("task_arithmetic", {"scale": 0.6}, "zs", 40, again=True)[-1] == pytest.approx(1.5, rel=1e-4)
    (warning,) = said("task_arithmetic", {"scale": 1.0}, "zs")
    assert "grows without bound" in warning
    assert lengths("task_arithmetic", {"scale": 1.0}, "zs", 5, again=True) == pytest.approx([1, 2, 3, 4, 5])
    (warning,) = said("ties", {"scale": 0.8, "normalize": False}, "zs")
    assert "grows up to 4 times" in warning


@pytest.mark.parametrize(("init", "left"), [("ema", "23.7%"), ("zs", "3.1%")])
def test_what_drops_at_random_says_how_much_is_left(init: str, left: str) -> None:
    (warning,) = said("dare_ties", {"density": 0.5}, init)
    assert f"after 5 of them {left} of the entries" in warning
    zero = {"w": np.zeros(20_000, np.float32)}
    running = zero
    alive = np.zeros(0, bool)
    for step in range(6):
        start = running["w"] if init == "ema" else zero["w"]
        # A trace of noise makes every expert another file, and so its draws.
        noise = np.random.default_rng(step).standard_normal(20_000).astype(np.float32) * np.float32(1e-6)
        merged = merge("dare_ties", [{"w": start + noise + np.float32(step == 0)}, running], zero).tensors
        assert merged is not None
        running = merged
        if step == 0:
            alive = running["w"] > 0.1
    assert (running["w"][alive] > 0.01).mean() == pytest.approx(float(left[:-1]) / 100, abs=0.01)


def test_lines_counts_too() -> None:
    with pytest.raises(UserError, match=r"scale 0\.5 with LiNeS multiplies .* by 1\.5 .* scale of at most 0\.333"):
        said("task_arithmetic", {"scale": 0.5, "lines": {"alpha": 0.5, "beta": 1.0}}, "ema")
    with pytest.raises(UserError, match=r"alpha: norm keeps the first block .* diverges"):
        said("ties", {"lines": {"alpha": "norm"}}, "ema")
    assert said("ties", {"lines": {"alpha": "norm"}}, "zs") == []
    assert said("ties", {"lines": {"alpha": "norm", "beta": 0.0}}, "ema") == []


def test_the_check_of_params_asks_by_init() -> None:
    technique = {"name": "task_arithmetic", "scale": 0.6}
    with pytest.raises(UserError, match="diverges"):
        check(Time.model_validate({"technique": technique}), 5)
    (warning,) = check(Time.model_validate({"init": "ft", "deploy": "ema", "technique": technique}), 5)
    assert "add up" in warning
    assert check(Time.model_validate({"init": "ft", "deploy": "all", "technique": technique}), 5) == []
