"""A regularizer's `Importance` on disk: a folder that is passed from state to state, and may be empty of one.

``regularizer.json``
    ``{"name": ...}``: the name of the regularizer, or null.
``importance.safetensors``, ``anchor.safetensors``
    If there is a regularizer: its `Importance`, both as plain weights.
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
    """The importance of earlier steps for the regularizer ``name``; None if they had none, or another one.

    Raises:
        UserError: the folder is damaged.
    """
    path = folder / NOTE
    try:
        of = json.loads(path.read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not readable ({error}); restore the previous state again") from None
    if of != name:
        return None
    return Importance(*(checkpoints.load(folder / f"{part}.safetensors") for part in ("importance", "anchor")))


def write(folder: Path, name: str | None, importance: Importance | None) -> None:
    """Write the folder that the next step reads.

    Raises:
        UserError: an importance is not finite; nothing is written.
    """
    for parameter, tensor in (importance.importance if importance else {}).items():
        if not tensor.isfinite().all():
            raise UserError(f"train.regularizer: {name}'s importance of {parameter!r} is not finite; lower train.lr")
    shutil.rmtree(folder, ignore_errors=True)  # in a restored state its files are links into the cache
    folder.mkdir(parents=True)
    if importance is not None:
        checkpoints.save(folder / "importance.safetensors", importance.importance)
        checkpoints.save(folder / "anchor.safetensors", importance.anchor)
    (folder / NOTE).write_text(json.dumps({"name": name if importance else None}) + "\n", encoding="utf-8")


def pass_on(source: Path, target: Path) -> None:
    """Copy the folder unchanged, for a step that trains nothing."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
