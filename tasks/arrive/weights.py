"""The check of an expert that arrives: does it fit the base, and was anything trained?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from tasks import layout
from tasks.arrive.verdict import Findings, few
from tasks.model import checkpoints, models
from tasks.model.fitting import NamesOnly
from tasks.model.sources import TensorEntry
from tasks.params import Params
from tasks.progress import Progress
from tasks.record import states
from tasks.storage import dvc_config
from tasks.storage.cache import Cache

FAR = 1.0
"""Norm of a task vector, relative to the base's, above which one may doubt that it is one."""


@dataclass(frozen=True)
class BaseTensors:
    """θ_0: the shape and dtype of its tensors, and its weights where they can be had."""

    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    weights: Path | None
    why_not: str = ""
    """Why there are no weights."""

    @property
    def names(self) -> NamesOnly:
        """Its names and shapes, as a model to compare with."""
        return NamesOnly({name: TensorEntry("F32", shape) for name, (shape, _) in self.tensors.items()}, "the base")


def base(project: Path, params: Params, model: Path, scratch: Path) -> BaseTensors:
    """The base of a project: as state 0 has it, or else as params.yaml names it. ``model`` is its model folder.

    Raises:
        UserError: the base that params.yaml names cannot be had.
    """
    expected = models.build(model, "meta").state_dict()
    tensors = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in expected.items()}
    if recorded := states(project, params.timeline):
        stored = Cache(dvc_config.cache_dir(project)).path(recorded[0].entries[layout.EXPERT].md5)
        return (
            BaseTensors(tensors, stored)
            if stored.exists()
            else BaseTensors(tensors, None, "its weights are not on this machine")
        )
    if params.base.pretrained == "train":
        return BaseTensors(tensors, None, "it is not trained yet")
    models.fetch_base(params.base, project, scratch)
    return BaseTensors(tensors, scratch / "base.safetensors")


def check(name: str, expert: Path, base: BaseTensors, findings: Findings, progress: Progress) -> None:
    """Compare a safetensors checkpoint with the base: names, shapes, kinds of numbers, values. One tensor at a time."""
    stored = checkpoints.shapes(expert)
    findings.facts |= {"tensors": len(stored), "bytes": expert.stat().st_size}
    _check_names(name, set(stored), set(base.tensors), findings)
    changed, squares, total = 0, 0.0, 0.0
    ours = safe_open(base.weights, framework="pt") if base.weights else None
    common = sorted(stored.keys() & base.tensors.keys())
    fits = len(common) == len(stored) == len(base.tensors)
    with safe_open(expert, framework="pt") as file:
        for done, key in enumerate(sorted(stored), start=1):
            tensor = file.get_tensor(key)
            finite = _check_values(name, key, tensor, findings)
            if key in base.tensors:
                same = _check_form(name, key, tensor, *base.tensors[key], findings)
                fits &= finite and same
                if ours and finite and same:
                    before = ours.get_tensor(key).reshape(tensor.shape).double()
                    difference = tensor.double() - before
                    changed += bool(difference.count_nonzero())
                    squares += float(difference.square().sum())
                    total += float(before.square().sum())
            progress(f"checking {name}", done, len(stored))
    if ours is None:
        findings.note(by_shapes_alone(base))
    elif fits:
        _judge(name, changed, math.sqrt(squares / total) if total else math.inf, findings)


def by_shapes_alone(base: BaseTensors) -> str:
    """The note that values were not compared."""
    return f"compared with the base by names and shapes alone: {base.why_not}"


def _check_names(name: str, stored: set[str], expected: set[str], findings: Findings) -> None:
    lacking, extra = sorted(expected - stored), sorted(stored - expected)
    if lacking:
        findings.complain(f"{name}: lacks {_tensors(lacking)} that the base has{_hint(stored, expected)}")
    if extra:
        findings.complain(f"{name}: has {_tensors(extra)} that the base lacks{_hint(stored, expected)}")


def _tensors(names: list[str]) -> str:
    return f"{len(names)} tensor{'s'[: len(names) > 1]} ({few(names)})"


def _hint(stored: set[str], expected: set[str]) -> str:
    """Weights saved from a wrapper have a word in front of every name."""
    prefixes = {key.partition(".")[0] + "." for key in stored}
    if len(prefixes) == 1:
        (prefix,) = prefixes
        if {key.removeprefix(prefix) for key in stored} == expected:
            return f"; take {prefix!r} off every name"
    return "; is it of another architecture?"


def _check_values(name: str, key: str, tensor: torch.Tensor, findings: Findings) -> bool:
    """All values must be finite as float32, which is what merges compute with."""
    if not tensor.is_floating_point():
        return True
    wrong = int((~tensor.to(torch.float32).isfinite()).sum())
    if wrong:
        findings.complain(f"{name}: {key!r}: {wrong} of {tensor.numel()} values are not finite (NaN or infinity)")
    return not wrong


def _check_form(
    name: str, key: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, findings: Findings
) -> bool:
    own = tuple(tensor.shape)
    if own != shape and {own, shape} != {(), (1,)}:  # both are in use for a scalar
        findings.complain(f"{name}: {key!r} has shape {list(own)}, the base has {list(shape)}")
        return False
    if tensor.is_floating_point() != dtype.is_floating_point:
        findings.complain(f"{name}: {key!r} holds {_kind(tensor.dtype)}, the base has {_kind(dtype)}")
        return False
    if tensor.dtype != dtype:
        findings.note(f"some of its tensors are stored as {_kind(tensor.dtype)}, and become {_kind(dtype)}")
    return True


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _judge(name: str, changed: int, distance: float, findings: Findings) -> None:
    findings.facts |= {"tensors changed": changed, "task vector's norm, relative to the base's:": distance}
    if not changed:
        findings.complain(f"{name}: is the base, value for value: nothing was trained")
    elif distance > FAR:
        findings.note(
            f"it is farther from the base than the base from zero ({distance:.2g} times): does it come from it?"
        )
