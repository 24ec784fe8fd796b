"""PCB-Merging: parameter competition balancing."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from tasks.merge.parts import Scoped
from tasks.merge.stream import Piece, Window
from tasks.merge.technique import Array, Density, Scope


class Pcb(Scoped):
    """θ_0 + λ Σ β̂_i τ_i / Σ β̂_i, β̂_i the largest density of β_i = intra_i · inter_i.

    intra_i = softmax(N·norm(τ_i²)) and inter_i = Σ_j softmax(norm(τ_i τ_j)), as the paper's equations have it (its two
    public codes have tanh, and no softmax, in inter); norm is min-max. All of them over the scope, the whole model by
    default. Softmaxes are multiplied by the number of entries, which cancels, so that they stay in float32's range.
    """

    name: ClassVar[str] = "pcb"
    source: ClassVar[str] = "Du et al. 2024, Parameter competition balancing (arXiv 2410.02396), section 3"

    scope: Scope = "model"
    density: Density = 0.2
    scale: float = 1.0

    def plan(self, window: Window) -> Callable[[Piece], Array]:
        n = len(window.experts)
        pairs = [(i, j) for i in range(n) for j in range(i, n)]

        def products(piece: Piece) -> tuple[Array, Array]:
            x = piece.vectors()
            return x, np.stack([x[i] * x[j] for i, j in pairs])

        def extremes(piece: Piece) -> np.ndarray:
            _, p = products(piece)
            return np.stack([p.min(axis=1), -p.max(axis=1)]).astype(np.float64)

        ranges = {}
        for group, (low, negative_high) in window.reduce(extremes, np.minimum).items():
            span = -negative_high - low
            ranges[group] = low.astype(np.float32), np.divide(1.0, span, out=np.zeros_like(span), where=span > 0)

        def exponentials(piece: Piece) -> tuple[Array, Array, Array]:
            x, p = products(piece)
            low, inverse = ranges[piece.tensor.group]
            p -= low[:, None]
            p *= inverse.astype(np.float32)[:, None]
            own = np.exp(n * p[[k for k, (i, j) in enumerate(pairs) if i == j]])
            return x, own, np.exp(p, out=p)

        def sums(piece: Piece) -> np.ndarray:
            _, own, shared = exponentials(piece)
            return np.concatenate([own.sum(axis=1, dtype=np.float64), shared.sum(axis=1, dtype=np.float64)])

        factors = {
            group: (window.sizes[group] / total).astype(np.float32) for group, total in window.reduce(sums).items()
        }

        def competition(piece: Piece) -> tuple[Array, Array]:
            x, own, shared = exponentials(piece)
            factor = factors[piece.tensor.group]
            inter = np.zeros_like(x)
            for k, (i, j) in enumerate(pairs):
                shared[k] *= factor[n + k]
                inter[i] += shared[k]
                if i != j:
                    inter[j] += shared[k]
            own *= factor[:n, None]
            own *= inter
            return x, own

        ranks = {group: (max(1, int(self.density * size)),) for group, size in window.sizes.items()}
        thresholds = window.largest(lambda piece: competition(piece)[1], ranks)

        def merged(piece: Piece) -> Array:
            x, beta = competition(piece)
            beta *= beta >= thresholds[piece.tensor.group]
            total: Array = beta.sum(axis=0)
            total[total == 0] = 1
            x *= beta
            result: Array = x.sum(axis=0) / total
            result *= self.scale
            return result

        return merged
