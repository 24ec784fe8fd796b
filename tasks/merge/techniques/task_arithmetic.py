"""Sums of task vectors."""

from __future__ import annotations

from typing import ClassVar

from tasks.merge.combining import Summed


class TaskArithmetic(Summed):
    """θ_0 + λ Σ w_k τ_k; a sum, no average: its length grows with the number of experts."""

    name: ClassVar[str] = "task_arithmetic"
    source: ClassVar[str] = "Ilharco et al. 2023, Editing models with task arithmetic (arXiv 2212.04089)"

    scale: float = 0.3
    """λ; the paper's for eight CLIP tasks."""
