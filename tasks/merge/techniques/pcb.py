"""PCB-Merging: parameter competition balancing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.merge import select
from tasks.merge.combining import weighted_mean
from tasks.merge.sparsifiers import Scoped
from tasks.merge.stream import Piece, Window
from tasks.merge.technique import Density
from tasks.merge.types import Array, Float64, Scope


class Pcb(Scoped):
    """θ_0 + λ Σ β̂_i τ_i / Σ β̂_i, β̂_i the largest density of β_i = intra_i · inter_i.

    intra_i = softmax(N·norm(τ_i²)) and inter_i = Σ_j softmax(norm(τ_i τ_j)), as the paper's equations have it (its two
    public codes have tanh, and no softmax, in inter); norm is min-max. All of them over the scope, the whole model by
    default. Softmaxes are multiplied by the number of entries, which cancels, so that they stay in float32's range.
    """

    name: ClassVar[str] = "pcb"
    source: ClassVar[str] = "Du et al. 2024, Parameter competition balancing (arXiv 2410.02396), section 3"

    stacked: ClassVar[bool] = True

    scope: Scope = "model"
    density: Density = 0.2
    scale: float = 1.0

    @classmethod
    def by_part(cls) -> tuple[str, ...]:
        return ("density", "scale")

    def plan(self, window: Window) -> Callable[[Piece], Array]:
        n = len(window.experts)
        pairs = [(i, j) for i in range(n) for j in range(i, n)]

        def extremes(piece: Piece) -> NDArray[np.float64]:
            x, bounds = piece.vectors(), np.zeros((2, n, n))
            for i, j in pairs:
                product = x[i] * x[j]
                bounds[:, i, j] = float(product.min()), -float(product.max())
            return bounds

        ranges: dict[str, tuple[Float64, Float64]] = {}
        for group, (low, negative_high) in window.reduce(extremes, np.minimum).items():
            span = -negative_high - low
            inverse = np.divide(1.0, span, out=np.zeros_like(span), where=span > 0)
            ranges[group] = low, inverse

        def exponential(piece: Piece, x: Array, i: int, j: int, times: int = 1) -> Array:
            """exp(times·norm(τ_i τ_j))."""
            low, inverse = ranges[piece.tensor.group]
            product: Array = x[i] * x[j]
            product -= float(low[i, j])
            product *= float(inverse[i, j])
            if times != 1:
                product *= times
            return np.exp(product, out=product)

        def sums(piece: Piece) -> NDArray[np.float64]:
            x, totals = piece.vectors(), np.zeros((2, n, n))
            for i, j in pairs:
                totals[0, i, j] = float(exponential(piece, x, i, j).sum(dtype=np.float64))
            for i in range(n):
                totals[1, i, i] = float(exponential(piece, x, i, i, times=n).sum(dtype=np.float64))
            return totals

        shares: dict[str, Float64] = {}
        for group, total in window.reduce(sums).items():
            shares[group] = np.divide(window.sizes[group], total, out=total, where=total > 0)

        def competition(piece: Piece, x: Array, rows: Sequence[int]) -> Array:
            """β of some experts."""
            inter, intra = shares[piece.tensor.group]
            beta = np.zeros((len(rows), *piece.shape), x.dtype, like=x)
            of = dict(zip(rows, beta, strict=True))
            for i, j in pairs:
                if i in of or j in of:
                    shared = exponential(piece, x, i, j)
                    shared *= float(inter[i, j])
                    for k in {i, j} & of.keys():
                        of[k] += shared
            for i in rows:
                own = exponential(piece, x, i, i, times=n)
                own *= float(intra[i, i])
                of[i] *= own
            return beta

        ranks = {
            group: (max(1, int(window.of(self, window.first[group]).density * size)),)
            for group, size in window.sizes.items()
        }
        thresholds = select.largest(
            window, lambda piece, rows: competition(piece, piece.vectors(), rows), ranks, rows=n
        )

        def merged(piece: Piece) -> Array:
            x = piece.vectors()
            beta = competition(piece, x, range(n))
            beta *= beta >= np.asarray(thresholds[piece.tensor.group], like=beta)
            return weighted_mean(x, beta) * self.at(piece).scale

        return merged
