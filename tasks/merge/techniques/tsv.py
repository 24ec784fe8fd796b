"""TSV-Merge: task singular vectors without interference."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from typing_extensions import override

from tasks.merge.matrices import orthonormalize, top
from tasks.merge.stream import Piece, Window
from tasks.merge.technique import Technique
from tasks.merge.types import Array, Unit


class Tsv(Technique):
    """Per matrix, the top rank/N singular triplets of every τ_k, the vectors of all made orthonormal together.

    U⊥ diag(s_1, …, s_N) V⊥ᵀ, where U⊥ and V⊥ are the polar factors of the concatenated U_k and V_k; other tensors:
    the mean. A task vector of rank below rank/N gives all the triplets that it has: singular values under 1e-7 of its
    largest are rounding, and their places stay zero in U, s and V. So do directions that the concatenated vectors lack
    (experts that share all their own, or are zero): the polar factor is zero there, and nothing is merged along them.
    """

    name: ClassVar[str] = "tsv"
    source: ClassVar[str] = "Gargiulo et al. 2025, Task singular vectors (arXiv 2412.00081), section 4.2"
    unit: ClassVar[Unit] = "tensor"

    scale: float = 1.0

    @classmethod
    def by_part(cls) -> tuple[str, ...]:
        return ("scale",)

    @override
    def plan(self, window: Window) -> Callable[[Piece], Array]:
        return lambda piece: self.at(piece)._merged(piece)

    def _merged(self, piece: Piece) -> Array:
        if len(piece.shape) != 2:
            total = piece.vector(0)
            for i in range(1, piece.count):
                total += piece.vector(i)
            return total * (self.scale / piece.count)
        each, n = max(1, min(piece.shape) // piece.count), piece.count
        like = piece.window.device.like
        u = np.zeros((piece.shape[0], each * n), piece.tensor.precision, like=like)
        v = np.zeros((piece.shape[1], each * n), piece.tensor.precision, like=like)
        s = np.zeros(each * n, like=like)
        for i in range(n):
            left, values, right = top(piece.vector(i), each)
            place = slice(i * each, i * each + len(values))
            u[:, place], s[place], v[:, place] = left, values, right
        orthonormalize(u)
        orthonormalize(v)
        v *= (s * self.scale).astype(v.dtype)
        merged: Array = u @ v.T
        return merged
