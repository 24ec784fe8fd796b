"""DELLA: drop by rank of magnitude, elect signs, sum."""

from __future__ import annotations

from typing import ClassVar

from tasks.merge.combining import SignElected, Summed
from tasks.merge.sparsifiers import MagnitudePruned

_SOURCE = "Deep et al. 2024, DELLA-Merging (arXiv 2406.11617), section 3"


class Della(MagnitudePruned, SignElected):
    """θ_0 + λ · sum of the kept, rescaled entries that agree with the elected sign.

    The keep probability spans epsilon, as in the paper; in mergekit it spans twice its epsilon.
    """

    name: ClassVar[str] = "della"
    source: ClassVar[str] = _SOURCE

    normalize: bool = False


class DellaLinear(MagnitudePruned, Summed):
    """θ_0 + λ Σ w_k τ̂_k with DELLA's τ̂."""

    name: ClassVar[str] = "della_linear"
    source: ClassVar[str] = _SOURCE
