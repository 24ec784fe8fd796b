"""DOP: close to the merged model and to the new expert, each in the directions in which it moved."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from typing_extensions import override

from tasks.errors import UserError
from tasks.merge.matrices import top
from tasks.merge.sequential import Accumulator, Expert, State, Summary
from tasks.merge.technique import Weighted
from tasks.merge.types import Array, Float64, Unit


class Dop(Weighted, Accumulator):
    """Per matrix the D with least Σ a_k (‖τ_kᵀ(D − τ_k)‖² + ‖(D − τ_k)τ_kᵀ‖²), k the merged so far and the new expert.

    It solves the Sylvester equation A D + D B = 2 Σ a_k τ_kτ_kᵀτ_k with A = Σ a_k τ_kτ_kᵀ, B = Σ a_k τ_kᵀτ_k, by the
    singular vectors of both. Other tensors: the mean, with the same shares a_k. a_k are the shares of the weights, 1/t
    for the t-th expert by default. The authors set the shares (in an EMA recursion that is weight), adapt them in 200
    steps of Adam, and average other tensors with ½; this is the minimum itself.
    """

    name: ClassVar[str] = "dop"
    source: ClassVar[str] = (
        "Yang et al. 2025, Continual model merging without data: Dual projections (NeurIPS 2025), EnnengYang/DOP"
    )
    state: ClassVar[tuple[str, ...]] = ("running",)
    unit: ClassVar[Unit] = "tensor"

    @property
    def normalizes(self) -> bool:
        return True

    @override
    def update(self, state: State, x: Array, expert: Expert) -> None:
        if expert.weight < 0:
            raise UserError(f"dop: a weight is {expert.weight:g}; a model is kept more or less, never driven away")
        running, share = state["running"], expert.share
        if share == 1 or share == 0:
            if share == 1:
                running[...] = x
        elif x.ndim != 2:
            x -= running
            x *= share
            running += x
        else:
            running[...] = _between(running, x, share)

    @override
    def finalise(self, state: State, summary: Summary) -> Array:
        return state["running"]


def _between(running: Array, x: Array, share: float) -> Float64:
    """D of two task vectors, ``share`` that of the second."""
    pair = [(1 - share, running.astype(np.float64)), (share, x.astype(np.float64))]
    rows = np.concatenate([np.sqrt(a) * tau for a, tau in pair], axis=1)
    u, left, _ = top(rows, min(rows.shape))
    columns = np.concatenate([np.sqrt(a) * tau for a, tau in pair], axis=0)
    _, right, v = top(columns, min(columns.shape))
    total = np.zeros((u.shape[1], v.shape[1]), like=running)
    for a, tau in pair:
        inner = u.T @ tau
        total += 2 * a * ((inner @ tau.T) @ tau @ v if tau.shape[0] <= tau.shape[1] else inner @ (tau.T @ (tau @ v)))
    total /= np.square(left)[:, None] + np.square(right)[None, :]
    merged: Float64 = u @ total @ v.T
    return merged
