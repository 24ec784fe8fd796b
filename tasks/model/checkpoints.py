"""Weights in and out: safetensors files, written atomically, compared by name and shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tasks.errors import UserError
from tasks.model import sources
from tasks.storage import atomic

Weights = dict[str, torch.Tensor]
Shapes = dict[str, tuple[tuple[int, ...], str]]
"""Tensor name → (shape, safetensors dtype name such as ``F32``)."""


def shapes(path: Path) -> Shapes:
    """Names, shapes and dtypes from the header alone.

    Raises:
        UserError: the file is missing, truncated or not safetensors; says what it is instead, where that shows.
    """
    return {name: (entry.shape, entry.dtype) for name, entry in sources.header(path).items()}


def load(path: Path) -> Weights:
    """All tensors of a safetensors file, on the CPU, in its own dtypes.

    Raises:
        UserError: as `shapes`.
    """
    shapes(path)  # a readable error before any allocation
    return load_file(path)


def check_finite(path: Path) -> None:
    """Every value must be finite as a float32, which is what a model computes with. Reads one tensor at a time.

    Raises:
        UserError: as `shapes`; or names the first tensor with a value that is not.
    """
    names = sorted(shapes(path))
    with safe_open(path, framework="pt") as file:
        for name in names:
            tensor = file.get_tensor(name)
            if tensor.is_floating_point() and not tensor.to(torch.float32).isfinite().all():
                raise UserError(f"{path}: {name!r} holds values that are not finite (NaN or infinity)")


def metadata(path: Path) -> dict[str, str]:
    """What `save` was given beside the weights of a readable file."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def save(path: Path, weights: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write contiguous CPU copies under a temporary name, then rename: never a half-written checkpoint.

    The bytes depend on names, shapes, dtypes, values and ``metadata`` alone: safetensors orders its header itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.made(path) as part:
        save_file({name: t.detach().cpu().contiguous() for name, t in weights.items()}, part, metadata)
        atomic.sync(part)


def check_compatible(path: Path, base: Path) -> None:
    """An expert must have the base's tensors, by name and shape (0-d and 1-element 1-d are the same scalar).

    Raises:
        UserError: names the first tensor that is missing, extra or of another shape.
    """
    ours, theirs = shapes(base), shapes(path)
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            raise UserError(f"{path}: lacks the tensor {name!r} that the base has; is it of another architecture?")
        if name not in ours:
            raise UserError(f"{path}: has a tensor {name!r} that the base lacks; is it of another architecture?")
        a, b = ours[name][0], theirs[name][0]
        if a != b and {a, b} != {(), (1,)}:
            raise UserError(
                f"{path}: tensor {name!r} has shape {list(b)}, the base has {list(a)}; give a model of the base's "
                "architecture, or take the base's tensors there (on_mismatch: base in the arrival)"
            )
