"""The closed form, against hand cases and against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group

from tasks.deploy.rotation import rotation
from tasks.errors import UserError


def features(count: int, width: int, seed: int = 0) -> torch.Tensor:
    random = np.random.default_rng(seed)
    made = random.normal(size=(count, width)) + 1  # in a cone, as CLIP's are
    return torch.from_numpy(made / np.linalg.norm(made, axis=1, keepdims=True))


def test_a_quarter_turn_by_hand() -> None:
    """(1, 0) → (0, 1) and (0, 1) → (−1, 0)."""
    turn, known = rotation(torch.eye(2), torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    assert torch.allclose(turn, torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64))
    assert known == 2


@pytest.mark.parametrize("mirrored", [False, True])
def test_rotated_features_are_rotated_back(mirrored: bool) -> None:
    """f_new = f_old·Q gives R = Qᵀ, whatever the sign of Q's determinant."""
    old, q = features(50, 8), torch.from_numpy(ortho_group.rvs(8, random_state=1))
    if mirrored:
        q[:, 0] *= -1
    turn, known = rotation(old @ q, old)
    assert torch.allclose(turn, q.T, atol=1e-12)
    assert known == 8


def test_it_is_scipys_where_images_decide_all_directions() -> None:
    new, old = features(200, 16, 1), features(200, 16, 2)
    turn, _ = rotation(new, old)
    assert np.allclose(turn.numpy(), orthogonal_procrustes(new.numpy(), old.numpy())[0], atol=1e-10)


def test_float32_features_give_a_rotation_in_float64() -> None:
    old, q = features(300, 12), torch.from_numpy(ortho_group.rvs(12, random_state=3))
    turn, _ = rotation((old @ q).float(), old.float())
    assert turn.dtype == torch.float64
    assert torch.allclose(turn @ turn.T, torch.eye(12, dtype=torch.float64), atol=1e-13)
    assert torch.allclose(turn, q.T, atol=1e-5)


def test_no_rotation_fits_better() -> None:
    new, old = features(60, 6, 1), features(60, 6, 2)
    turn, _ = rotation(new, old)
    best = float((new @ turn - old).square().sum())
    for seed in range(20):
        other = torch.from_numpy(ortho_group.rvs(6, random_state=seed))
        assert float((new @ other - old).square().sum()) >= best


def test_directions_without_images_stay_where_they_are() -> None:
    """Images in the plane of the first two axes, turned there: the third and fourth axis do not move."""
    angle = 0.3
    q = torch.eye(4, dtype=torch.float64)
    q[:2, :2] = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    old = torch.zeros(10, 4, dtype=torch.float64)
    old[:, :2] = features(10, 2)
    turn, known = rotation(old @ q, old)
    assert known == 2
    assert torch.allclose(turn, q.T, atol=1e-12)


def test_equal_models_are_not_rotated_by_one_image() -> None:
    one = features(1, 5)
    turn, known = rotation(one, one)
    assert known == 1
    assert torch.allclose(turn, torch.eye(5, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize(
    ("new", "old", "says"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), r"features of shape \[2, 3\] and \[2, 4\]"),
        (torch.ones(2, 3), torch.ones(3, 3), r"the same images in both models"),
        (torch.ones(0, 3), torch.ones(0, 3), r"the same images in both models"),
        (torch.full((2, 3), torch.nan), torch.ones(2, 3), "not finite"),
    ],
)
def test_features_that_do_not_fit_are_refused(new: torch.Tensor, old: torch.Tensor, says: str) -> None:
    with pytest.raises(UserError, match=says):
        rotation(new, old)
