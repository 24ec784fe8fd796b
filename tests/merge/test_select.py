"""Exact order statistics of streams, against a sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.merge import create, merge, select

SIZE = 60_000


def kept_by_trimming(x: NDArray[np.float32], density: float) -> NDArray[np.float32]:
    tensors = merge(create("ties", {"density": density}), [{"w": x}], {"w": np.zeros_like(x)}).tensors
    assert tensors is not None
    kept: NDArray[np.float32] = tensors["w"]
    return kept


def expected(x: NDArray[np.float32], density: float) -> NDArray[np.float32]:
    magnitude = np.abs(x)
    threshold = np.sort(magnitude.reshape(-1))[::-1][max(1, int(density * x.size)) - 1]
    return x * (magnitude >= threshold)


DISTRIBUTIONS = {
    "normal": lambda r: r.standard_normal(SIZE),
    "heavy tails": lambda r: r.standard_cauchy(SIZE),
    "mostly zero": lambda r: r.standard_normal(SIZE) * (r.random(SIZE) < 0.05),
    "few values": lambda r: r.integers(-3, 4, SIZE),
    "one value": lambda _: np.ones(SIZE),
    "rising": lambda _: np.linspace(0, 1, SIZE),
    "periodic like the sample": lambda _: np.sin(np.arange(SIZE) * 2 * np.pi / 1024),
    "one outlier": lambda _: np.eye(1, SIZE, 777)[0],
    "subnormal": lambda r: r.standard_normal(SIZE) * 1e-42,
}


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("density", [1e-5, 0.01, 0.2, 0.5, 0.999])
def test_trimming_large_tensors_is_exact(kind: str, density: float) -> None:
    x = np.asarray(DISTRIBUTIONS[kind](np.random.default_rng(5)), np.float32)
    np.testing.assert_array_equal(kept_by_trimming(x, density), expected(x, density))


@given(seed=st.integers(0, 1000), size=st.integers(1, 300), density=st.floats(0.001, 1))
@settings(max_examples=30, deadline=None)
def test_trimming_small_tensors_is_exact(seed: int, size: int, density: float) -> None:
    x = np.random.default_rng(seed).integers(-5, 6, size).astype(np.float32)
    if density < 1:
        np.testing.assert_array_equal(kept_by_trimming(x, density), expected(x, density))


def test_histograms_find_the_same_as_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets of no width nearly always miss, so that the answer is counted."""
    monkeypatch.setattr(select, "_DEVIATIONS", 0.0)
    x = np.random.default_rng(6).standard_normal(SIZE).astype(np.float32)
    for density in (0.01, 0.2, 0.7):
        np.testing.assert_array_equal(kept_by_trimming(x, density), expected(x, density))


def kept_by_sce(x: NDArray[np.float32], density: float) -> NDArray[np.float32]:
    """SCE of x and the base: it keeps by variance, which is x²/4, and where x is kept the result is x."""
    zero = {"w": np.zeros_like(x)}
    tensors = merge(create("sce", {"density": density}), [{"w": x}, zero], zero).tensors
    assert tensors is not None
    kept: NDArray[np.float32] = tensors["w"]
    return kept


def expected_of_sce(x: NDArray[np.float32], density: float) -> NDArray[np.float32]:
    variance = np.square(x / 2)
    rank = int(density * np.count_nonzero(variance))
    least = np.sort(variance)[::-1][rank - 1] if rank else np.inf
    return x * (variance >= least)


@pytest.mark.parametrize("deviations", [0.0, 6.0])
@pytest.mark.parametrize("kind", [k for k in DISTRIBUTIONS if k != "subnormal"])
def test_a_share_of_what_is_more_than_0_is_exact(kind: str, deviations: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_DEVIATIONS", deviations)
    x = np.asarray(DISTRIBUTIONS[kind](np.random.default_rng(5)), np.float32)
    for density in (1e-5, 0.01, 0.5, 0.999):
        np.testing.assert_array_equal(kept_by_sce(x, density), expected_of_sce(x, density))
    for size in (1, 7, 300):
        np.testing.assert_array_equal(kept_by_sce(x[:size], 0.5), expected_of_sce(x[:size], 0.5))
