"""A regularizer's `Importance` on disk: a folder that states hand on, with or without one in it.

``regularizer.json``
    ``{"name": ...}``: which regularizer it is of, or null.
``importance.safetensors``, ``anchor.safetensors``
    Where there is one: `Importance`, both as plain weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tasks.errors import UserError
from tasks.model import checkpoints
from tasks.train.regularizer import Importance

NOTE = "regularizer.json"


def read(folder: Path, name: str) -> Importance | None:
    """What earlier steps hold important to the regularizer ``name``; None where they had none, or another.

    Raises:
        UserError: the folder is damaged.
    """
    path = folder / NOTE
    try:
        of = json.loads(path.read_text())["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not readable ({error}); restore the previous state again") from None
    if of != name:
        return None
    return Importance(*(checkpoints.load(folder / f"{part}.safetensors") for part in ("importance", "anchor")))


def write(folder: Path, name: str | None, found: Importance | None) -> None:
    """Leave in ``folder`` what the next step reads.

    Raises:
        UserError: an importance is not finite; nothing is written.
    """
    for parameter, tensor in (found.importance if found else {}).items():
        if not tensor.isfinite().all():
            raise UserError(f"train.regularizer: {name}'s importance of {parameter!r} is not finite; lower train.lr")
    shutil.rmtree(folder, ignore_errors=True)  # in a restored state its files are links into the cache
    folder.mkdir(parents=True)
    if found is not None:
        checkpoints.save(folder / "importance.safetensors", found.importance)
        checkpoints.save(folder / "anchor.safetensors", found.anchor)
    (folder / NOTE).write_text(json.dumps({"name": name if found else None}) + "\n")


def hand_on(source: Path, target: Path) -> None:
    """A step that trains nothing changes nothing of it."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
