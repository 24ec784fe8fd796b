"""Consensus Merging: only what enough tasks need (TALL masks)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from tasks.merge.sparsifiers import Scoped
from tasks.merge.stream import Piece, Window
from tasks.merge.technique import Density
from tasks.merge.techniques.ties import Ties
from tasks.merge.types import Array


class Consensus(Scoped):
    """λ τ ∘ [Σ_i m_i ≥ k] with the TALL masks m_i = |τ_i| ≥ lambda_·|τ − τ_i| of the merged task vector τ.

    τ is Σ τ_i, or TIES's (trimmed to density over scope). Masks as in the authors' code (fusion_bench's keep far more).
    """

    name: ClassVar[str] = "consensus"
    source: ClassVar[str] = "Wang et al. 2024, Localizing task information (arXiv 2405.07813), sections 3 and 4"

    stacked: ClassVar[bool] = True

    on: Literal["task_arithmetic", "ties"] = "task_arithmetic"
    lambda_: float = Field(default=0.4, ge=0)
    k: int = Field(default=2, ge=0)
    """At least so many tasks need an entry."""
    density: Density = 0.2
    scale: float = 0.3

    @classmethod
    def by_part(cls) -> tuple[str, ...]:
        return ("lambda_", "k", "scale")

    def plan(self, window: Window) -> Callable[[Piece], Array]:
        ties = Ties(density=self.density, scope=self.scope).plan(window) if self.on == "ties" else None

        def merged(piece: Piece) -> Array:
            vectors, chosen = piece.vectors(), self.at(piece)
            total = vectors.sum(axis=0) if ties is None else ties(piece)
            votes = np.zeros_like(total, dtype=np.int32)
            for vector in vectors:
                votes += np.abs(vector) >= chosen.lambda_ * np.abs(total - vector)
            total *= votes >= chosen.k
            total *= chosen.scale
            return total

        return merged
