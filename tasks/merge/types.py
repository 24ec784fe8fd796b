"""Types that all modules of merging share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
"""Float32, or float64 where an input is."""
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GramForm:
    """How the Gram matrix of a weight is stored, and on which side of the weight its inputs are."""

    full: bool
    """in × in; otherwise the diagonal alone."""
    rows: bool
    """The weight is (in, out); otherwise (out, in)."""
    inputs: int


Unit = Literal["slice", "row", "tensor"]
"""What a piece may be cut into: any slice, whole rows, or whole tensors."""
Scope = Literal["tensor", "tower", "model"]
"""Over what statistics are taken."""
