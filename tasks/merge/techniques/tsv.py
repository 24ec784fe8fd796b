"""TSV-Merge: task singular vectors without interference."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from tasks.merge.matrices import orthonormal, svd
from tasks.merge.stream import Piece, Window
from tasks.merge.technique import Array, Technique, Unit


class Tsv(Technique):
    """Per matrix, the top rank/N singular triplets of every τ_k, the vectors of all made orthonormal together.

    U⊥ diag(s_1, …, s_N) V⊥ᵀ, where U⊥ and V⊥ are the polar factors of the concatenated U_k and V_k; other tensors: the mean.
    """

    name: ClassVar[str] = "tsv"
    source: ClassVar[str] = "Gargiulo et al. 2025, Task singular vectors (arXiv 2412.00081), section 4.2"
    unit: ClassVar[Unit] = "tensor"

    scale: float = 1.0

    def plan(self, window: Window) -> Callable[[Piece], Array]:
        return self._merged

    def _merged(self, piece: Piece) -> Array:
        if len(piece.shape) != 2:
            total = piece.vector(0)
            for i in range(1, piece.count):
                total += piece.vector(i)
            return total * (self.scale / piece.count)
        each = max(1, min(piece.shape) // piece.count)
        parts = [svd(piece.vector(i), each) for i in range(piece.count)]
        u = orthonormal(np.concatenate([p.u for p in parts], axis=1))
        v = orthonormal(np.concatenate([p.v for p in parts], axis=1))
        s = np.concatenate([p.s for p in parts]) * self.scale
        merged: Array = (u * s.astype(np.float32)) @ v.T
        return merged
