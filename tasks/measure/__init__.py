"""Measuring what a model's own data says about its weights, for merging techniques that look at data.

    measure(model, batches, outputs, "expert.stats.safetensors", pool="my data")      # any torch module
    measure_clip("expert.safetensors", ["icons:food"], "expert.stats.safetensors")    # an open_clip model

Importing it costs nothing; measuring needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.measure.clip import measure_clip
    from tasks.measure.measurement import Measurement, measure
    from tasks.measure.needs import check
    from tasks.measure.own import measure_own

_HOMES = {
    "check": "tasks.measure.needs",
    "Measurement": "tasks.measure.measurement",
    "measure": "tasks.measure.measurement",
    "measure_clip": "tasks.measure.clip",
    "measure_own": "tasks.measure.own",
}
__all__ = ["Measurement", "check", "measure", "measure_clip", "measure_own"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
