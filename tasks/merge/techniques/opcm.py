"""OPCM: each new task vector, projected away from what is merged already."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tasks.merge.matrices import svd
from tasks.merge.technique import Accumulator, Array, Expert, Scope, Share, State, Summary, Unit


class Opcm(Accumulator):
    """θ_0 + D/λ: D gathers the task vectors, each without its part in the leading singular subspace of D.

    Per matrix, with U S Vᵀ of the D so far and P = Uᵀ τ V: r is the first index at which cumsum(S)/sum(S) exceeds alpha;
    the diagonal of P and its block [:r, :r] are removed from τ. Other tensors: τ is added. λ = ‖D‖ / mean ‖τ_k‖ over the
    whole model, so D is as long as a task vector is on average.

    The paper rescales D after every step; since its next step multiplies by the same λ again, D is kept unscaled here, and
    scaled on output alone. In directions where D is zero the diagonal is undefined, and τ is kept.
    """

    name: ClassVar[str] = "opcm"
    source: ClassVar[str] = "Tang et al. 2025, Merging models on the fly without retraining (arXiv 2501.09522), section 4"
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

    def update(self, state: State, x: Array, expert: Expert) -> None:
        running = state["running"]
        if x.ndim == 2:
            known = svd(running)
            if len(known.s):
                x -= self._known_part(x, known.u, known.s, known.v)
        running += x

    def _known_part(self, x: Array, u: Array, s: np.ndarray, v: Array) -> Array:
        leading = int(np.argmax(np.cumsum(s) / s.sum() > self.alpha))
        seen = x @ v
        removed = np.zeros((len(s), len(s)), np.float32)
        removed[:leading, :leading] = u[:, :leading].T @ seen[:, :leading]
        np.fill_diagonal(removed, np.einsum("ij,ij->j", u, seen))
        part: Array = (u @ removed) @ v.T
        return part

    def finalise(self, state: State, summary: Summary) -> Array:
        length = math.sqrt(summary.squares["running"])
        return state["running"] * (summary.norms / summary.count / length if length else 0.0)
