"""SCE: select, calculate, erase."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from pydantic import Field

from tasks.merge import select
from tasks.merge.combining import weighted_mean
from tasks.merge.sparsifiers import Scoped
from tasks.merge.stream import Piece, Window
from tasks.merge.technique import Density
from tasks.merge.types import Array


class Sce(Scoped):
    """θ_0 + Σ w_i τ̂_i / Σ w_i over the entries that have the sign of Σ τ̂_i.

    Select: τ̂ keeps the density of entries whose variance across experts is largest, of those where it is not zero.
    Calculate: w_i is the share of Σ τ̂_i² over the scope. Erase: the minority sign.
    """

    name: ClassVar[str] = "sce"
    source: ClassVar[str] = "Wan et al. 2024, FuseChat (arXiv 2408.07990), section 3.3; mergekit's sce"

    stacked: ClassVar[bool] = True

    density: Density = 1.0
    floor: float = Field(default=0.0, ge=0)
    """Mean square, of all experts together, below which all weigh the same; mergekit has 1e-6."""
    scale: float = 1.0

    @classmethod
    def by_part(cls) -> tuple[str, ...]:
        return ("density", "scale")

    def plan(self, window: Window) -> Callable[[Piece], Array]:
        thresholds: dict[str, float] = {}
        density = {group: window.of(self, tensor).density for group, tensor in window.first.items()}
        if any(share < 1 for share in density.values()):
            least_of = select.threshold(window, lambda piece: _variance(piece.vectors()), density)
            thresholds = {group: float(least) for group, least in least_of.items()}

        def selected(piece: Piece) -> Array:
            x = piece.vectors()
            if density[piece.tensor.group] < 1:
                x *= _variance(x) >= thresholds[piece.tensor.group]
            return x

        energies = window.reduce(lambda piece: np.einsum("ij,ij->i", *(2 * [selected(piece)]), dtype=np.float64))
        weights = {}
        for group, energy in energies.items():
            uniform = energy.sum() == 0 or energy.sum() / window.sizes[group] < self.floor
            shares = np.full(len(energy), 1 / len(energy)) if uniform else energy / energy.sum()
            weights[group] = shares[:, None]

        def merged(piece: Piece) -> Array:
            x = selected(piece)
            elected = np.where(x.sum(axis=0) >= 0, x.dtype.type(1), x.dtype.type(-1))
            agree: Array = np.asarray(weights[piece.tensor.group], x.dtype, like=x) * (x * elected > 0)
            return weighted_mean(x, agree) * self.at(piece).scale

        return merged


def _variance(x: Array) -> Array:
    """Over experts, (experts, entries) → (entries)."""
    apart = x - x.mean(axis=0)
    variance: Array = np.einsum("ij,ij->j", apart, apart)
    variance /= len(x)
    return variance
