"""What the deployed model takes each test sample for: the folder ``data/step/predictions`` of a state.

``predictions.json``
    ``{"version": 1, "sets": {NAME: number of evaluated samples}}``: the sets with classes.
``NAME.npy``
    int32, one number for each sample of the prepared set, in its order: the nearest class (an index into the classes of
    its data card), or -1 for a sample that was not evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tasks.storage import atomic

INDEX = "predictions.json"
VERSION = 1
NOT_EVALUATED = -1


def write(folder: Path, predicted: Mapping[str, np.ndarray]) -> None:
    """Write the folder anew; ``predicted`` has for each set an int32 array as above."""
    with atomic.made_folder(folder) as made:
        for name, classes in predicted.items():
            np.save(made / f"{name}.npy", classes.astype(np.int32))
        sizes = {name: int((classes != NOT_EVALUATED).sum()) for name, classes in predicted.items()}
        (made / INDEX).write_text(json.dumps({"version": VERSION, "sets": sizes}, indent=1) + "\n", encoding="utf-8")
