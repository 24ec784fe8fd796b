"""TIES: trim, elect sign, merge."""

from __future__ import annotations

from typing import ClassVar

from tasks.merge.combining import SignElected
from tasks.merge.sparsifiers import Trimmed


class Ties(Trimmed, SignElected):
    """θ_0 + λ · mean of the trimmed entries that agree with the elected sign.

    The mean is over the agreeing experts, as in the paper (fusion_bench sums). Trimming is per tensor by default, as in
    mergekit; the paper's code trims over the whole model, TIME over a tower: see scope.
    """

    name: ClassVar[str] = "ties"
    source: ClassVar[str] = "Yadav et al. 2023, TIES-Merging (arXiv 2306.01708), section 3"
