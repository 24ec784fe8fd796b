"""The rotation that brings a model's features into the space of another's: orthogonal Procrustes, in closed form."""

from __future__ import annotations

import torch

from tasks.errors import UserError

ROUNDING = 1e-7
"""A singular value below this share of the largest is rounding of float32 features: there the images say nothing."""


def rotation(new: torch.Tensor, old: torch.Tensor) -> tuple[torch.Tensor, int]:
    """R, float64 of shape (D, D) with R Rᵀ = I, which minimizes ‖new·R − old‖, and how many directions images decide.

    R = U Vᵀ of the singular value decomposition of M = Σ f_newᵀ f_old (Schönemann 1966); its determinant may be −1.
    Where M has fewer than D directions, many R are as good: of those it is the one nearest to the identity, so that a
    direction without images stays where it is.

    Args:
        new: features of images, float, shape (N, D).
        old: the other model's features of the same images, float, shape (N, D).

    Raises:
        UserError: no images, features of different shapes, or values that are not finite.
    """
    if new.shape != old.shape or new.dim() != 2 or not len(new):
        raise UserError(
            f"a rotation needs the same images in both models, and there are features of shape {list(new.shape)} and"
            f" {list(old.shape)}"
        )
    if not (new.isfinite().all() and old.isfinite().all()):
        raise UserError("a rotation cannot be fitted: features of its images are not finite (NaN or infinity)")
    left, values, right = torch.linalg.svd(new.double().T @ old.double())
    known = int((values > ROUNDING * values[0]).sum())
    left_known, right_known = left[:, :known], right[:known]
    left_free, right_free = left[:, known:], right[known:]
    # The free part is its own Procrustes problem, with the identity as the target.
    a, _, b = torch.linalg.svd(left_free.T @ right_free.T)
    return left_known @ right_known + left_free @ a @ b @ right_free, known
