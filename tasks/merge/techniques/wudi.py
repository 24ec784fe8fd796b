"""WUDI: the merged task vector that disturbs each expert's outputs least."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from tasks.merge.layout import Tensor
from tasks.merge.matrices import gram, solve
from tasks.merge.sequential import Accumulator, Expert, State, Summary
from tasks.merge.stream import square
from tasks.merge.types import Array, Float64, Unit
from tasks.model.sources import TensorEntry


class Wudi(Accumulator):
    """Per matrix λ (Σ τ_k τ_kᵀ τ_k / ‖τ_k‖²)(Σ τ_kᵀ τ_k / ‖τ_k‖² + epsilon·I)⁻¹; other tensors: λ times the mean.

    That is where Σ ‖(τ − τ_k) τ_kᵀ‖² / ‖τ_k‖² is least: the rows of τ_k stand for the inputs that expert k was trained
    on. The paper goes there by 300 steps of Adam from Σ τ_k; this is the minimum itself. Both sums are float64, since
    they hold squares and cubes of singular values: the running state is about five times a float32 model.
    """

    name: ClassVar[str] = "wudi"
    source: ClassVar[str] = "Cheng et al. 2025, Whoever started the interference should end it (arXiv 2503.08099)"
    state: ClassVar[tuple[str, ...]] = ("sum", "moved", "gram")
    unit: ClassVar[Unit] = "tensor"

    epsilon: float = Field(default=1e-8, ge=0)
    """Shrinks what hardly moved: directions whose share of a task vector's squared length is below it."""
    scale: float = 1.0
    """λ."""

    @override
    def kept_as(self, array: str, tensor: Tensor) -> TensorEntry | None:
        if len(tensor.shape) != 2:
            return super().kept_as(array, tensor) if array == "sum" else None
        if array == "sum":
            return None
        return TensorEntry("F64", tensor.shape if array == "moved" else 2 * tensor.shape[1:])

    @override
    def update(self, state: State, x: Array, expert: Expert) -> None:
        if "sum" in state:
            state["sum"] += x
            return
        length = square(x)
        if not length:
            return
        inner = gram(x)
        inner /= length
        state["gram"] += inner
        if x.shape[0] < x.shape[1]:
            state["moved"] += gram(x.T) / length @ x.astype(np.float64)
        else:
            state["moved"] += x.astype(np.float64) @ inner

    @override
    def finalise(self, state: State, summary: Summary) -> Array:
        if "sum" in state:
            return state["sum"] * (self.scale / summary.count)
        system: Float64 = state["gram"]
        np.fill_diagonal(system, np.diagonal(system) + self.epsilon)
        merged: Array = solve(system, state["moved"].T, float(np.finfo(np.float64).eps)).T
        merged *= self.scale
        return merged
