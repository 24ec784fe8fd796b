"""Merging models over time: a library of techniques, and an engine that streams safetensors checkpoints through them.

    from tasks.merge import merge
    experts = ["a.safetensors", "b.safetensors"]
    merge("ties", experts, "base.safetensors", "merged.safetensors", settings={"density": 0.2})

Importing it, and merging, needs NumPy, safetensors and pydantic alone.
"""

from __future__ import annotations

from tasks.merge.engine import Merged, advance, merge
from tasks.merge.fitted import FitResult
from tasks.merge.measured import Statistics
from tasks.merge.protocol import check, has_sequential_form
from tasks.merge.report import Report
from tasks.merge.sequential import Accumulator
from tasks.merge.technique import Technique, available, create

__all__ = [
    "Accumulator",
    "FitResult",
    "Merged",
    "Report",
    "Statistics",
    "Technique",
    "advance",
    "available",
    "check",
    "create",
    "has_sequential_form",
    "merge",
]
