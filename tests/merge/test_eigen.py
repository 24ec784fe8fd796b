"""A few eigenvectors against all of them."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.merge import eigen


@pytest.mark.parametrize("most", [1, 4, 10, 11, 40])
@pytest.mark.parametrize("rank", [3, 40])
def test_the_largest_are_those_of_all(most: int, rank: int) -> None:
    x = np.random.default_rng(most).standard_normal((rank, 40))
    x = x.T @ x
    values, vectors = eigen.largest(x.copy(), most)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(x)[::-1][:most], rtol=1e-12, atol=1e-12 * values[0])
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(most), atol=1e-12)
    np.testing.assert_allclose(x @ vectors, vectors * values, atol=1e-12 * values[0])


def test_a_library_without_the_routine_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((60, 40))
    few = eigen.largest(x.T @ x, 5)
    monkeypatch.setattr(eigen, "_routine", lambda: None)
    for one, other in zip(few, eigen.largest(x.T @ x, 5), strict=True):
        np.testing.assert_allclose(np.abs(one), np.abs(other), rtol=1e-9, atol=1e-12)


def test_the_routine_is_there() -> None:
    """In NumPy's own wheels; without it all is as before, and slower."""
    assert eigen._routine() is not None
