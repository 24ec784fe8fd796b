"""Lets torchvision import beside the CPU build of torch; call `ensure` before anything imports open_clip.

torchvision's wheel is built for the CUDA build of torch. Beside the CPU build its compiled operators do not load, and
its Python part then fails on ``operator torchvision::nms does not exist`` when it registers shape rules for them.
Nothing here uses these operators (open_clip needs only image transforms), so it is enough that their schemas are
known. Where torchvision imports by itself, nothing is done.
"""

from __future__ import annotations

import importlib
import re
import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.library import Library

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@cache
def _library() -> Library:
    """Kept for the life of the process: the schemas go when the library object does."""
    from torch.library import Library

    return Library("torchvision", "FRAGMENT")


@cache
def ensure() -> None:
    """Import torchvision, defining the schemas of operators that its import misses.

    Raises:
        RuntimeError: torchvision fails for any other reason; its own error, unchanged.
    """
    while True:
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = _MISSING.search(str(error))
            if missing is None or missing[1] not in _SCHEMAS:
                raise
            _library().define(_SCHEMAS[missing[1]])
            for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
                del sys.modules[name]
