"""Iso-C: an isotropic common subspace."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from tasks.merge.matrices import orthonormalize
from tasks.merge.sequential import Accumulator, Expert, State, Summary
from tasks.merge.types import Array, Unit


class IsoC(Accumulator):
    """Per matrix, Σ τ_k with all its singular values replaced by their mean; other tensors: the mean of the τ_k.

    That is the mean singular value times the polar factor of Σ τ. Directions in which no expert moved stay so (an SVD
    would fill them with arbitrary ones).
    """

    name: ClassVar[str] = "iso_c"
    source: ClassVar[str] = "Marczak et al. 2025, No task left behind (arXiv 2502.04959), section 4.1"
    state: ClassVar[tuple[str, ...]] = ("sum",)
    unit: ClassVar[Unit] = "tensor"

    scale: float = 1.0
    """λ."""

    @override
    def update(self, state: State, x: Array, expert: Expert) -> None:
        state["sum"] += x

    @override
    def finalise(self, state: State, summary: Summary) -> Array:
        total = state["sum"]
        if total.ndim != 2:
            return total * (self.scale / summary.count)
        singular = orthonormalize(total)
        total *= self.scale * float(singular.mean())
        return total
