"""Model Breadcrumbs: neither the outliers nor the negligible."""

from __future__ import annotations

from typing import ClassVar

from tasks.merge.combining import SignElected, Summed
from tasks.merge.sparsifiers import Banded

_SOURCE = "Davari and Belilovsky 2023, Model Breadcrumbs (arXiv 2312.06795), section 3"


class Breadcrumbs(Banded, Summed):
    """θ_0 + λ Σ w_k τ̂_k, τ̂ without its largest gamma and its smallest entries."""

    name: ClassVar[str] = "breadcrumbs"
    source: ClassVar[str] = _SOURCE

    scale: float = 0.3
    """λ; the paper's for several tasks."""


class BreadcrumbsTies(Banded, SignElected):
    """Breadcrumbs' τ̂ under TIES's sign election and mean (TIME: density 0.3)."""

    name: ClassVar[str] = "breadcrumbs_ties"
    source: ClassVar[str] = f"{_SOURCE}; Yadav et al. 2023 (arXiv 2306.01708)"
