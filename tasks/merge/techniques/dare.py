"""DARE: drop and rescale, then sum or elect signs."""

from __future__ import annotations

from typing import ClassVar

from tasks.merge.combining import SignElected, Summed
from tasks.merge.sparsifiers import Dropped

_SOURCE = "Yu et al. 2024, Language models are super Mario (arXiv 2311.03099), section 3"


class DareLinear(Dropped, Summed):
    """θ_0 + λ Σ w_k τ̂_k, τ̂ kept with probability density and divided by it (mergekit restores the L1 norm instead)."""

    name: ClassVar[str] = "dare_linear"
    source: ClassVar[str] = _SOURCE


class DareTies(Dropped, SignElected):
    """DARE's τ̂ under TIES's sign election and mean."""

    name: ClassVar[str] = "dare_ties"
    source: ClassVar[str] = f"{_SOURCE}; Yadav et al. 2023 (arXiv 2306.01708)"
