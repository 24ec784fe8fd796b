"""OPCM: each new task vector, projected away from what is merged already."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from typing_extensions import override

from tasks.merge.matrices import product, right_vectors, subtract_product
from tasks.merge.sequential import Accumulator, Expert, State, Summary
from tasks.merge.technique import Share
from tasks.merge.types import Array, Scope, Unit


class Opcm(Accumulator):
    """θ_0 + D/λ: D gathers the task vectors, each without its part in the leading singular subspace of D.

    Per matrix, with U S Vᵀ of the D so far and P = Uᵀ τ V: r is the first index at which cumsum(S)/sum(S) exceeds
    alpha; the diagonal of P and its block [:r, :r] are removed from τ. Other tensors: τ is added. λ = ‖D‖ / mean ‖τ_k‖
    over the whole model, so D is as long as a task vector is on average.

    The paper rescales D after every step; since its next step multiplies by the same λ again, D is kept unscaled here,
    and scaled on output alone. In directions where D is zero the diagonal is undefined, and τ is kept.
    """

    name: ClassVar[str] = "opcm"
    source: ClassVar[str] = (
        "Tang et al. 2025, Merging models on the fly without retraining (arXiv 2501.09522), section 4"
    )
    state: ClassVar[tuple[str, ...]] = ("running",)
    state_norms: ClassVar[tuple[str, ...]] = ("running",)
    unit: ClassVar[Unit] = "tensor"

    alpha: Share = 0.5

    @property
    def grouping(self) -> Scope:
        return "model"

    @property
    def needs_norms(self) -> bool:
        return True

    @override
    def update(self, state: State, x: Array, expert: Expert) -> None:
        if x.ndim == 2:
            tall = x.shape[0] >= x.shape[1]
            self._project(*((x, state["running"]) if tall else (x.T, state["running"].T)))
        state["running"] += x

    def _project(self, x: Array, running: Array) -> None:
        """Take from ``x``, in place, what ``running`` (both tall) knows: U Z Vᵀ, Z the removed entries of Uᵀ x V.

        With U = D V / S, that needs V and S alone: Uᵀ x V = Vᵀ(Dᵀx)V / S, and U Z Vᵀ = D (V/S) Z Vᵀ.
        """
        if not running.any():
            return
        s, v = right_vectors(running)
        leading = int(np.argmax(np.cumsum(s) / s.sum() > self.alpha))
        moved = product(running, x) @ v
        diagonal = np.einsum("ij,ij->j", v, moved) / s
        removed = diagonal[:, None] * v.T  # Z Vᵀ
        top = v[:, :leading]
        removed[:leading] = (top.T @ moved[:, :leading] / s[:leading, None]) @ top.T
        subtract_product(x, running, (v / s) @ removed)

    @override
    def finalise(self, state: State, summary: Summary) -> Array:
        running, length = state["running"], math.sqrt(summary.squares["running"])
        running *= summary.norms / summary.count / length if length else 0.0
        return running
