"""Which tensors are merged, which are kept as they are, and how they fall into layers, towers and groups."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tasks.errors import UserError
from tasks.merge.sources import FLOATS, Entry, Source
from tasks.merge.types import Scope

_BLOCK = re.compile(r"(?:^|\.)(?:resblocks|layers|layer|blocks|block|h|stages)\.(\d+)\.")
_VISION = re.compile(r"^(?:model\.)?(?:visual|vision|image)(?=[._])")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to merge."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """Of the output, as safetensors names it."""
    group: str
    """What its statistics are taken over: its own name, its tower's, or the model's."""
    depth: float
    """l/(L−1) for block l of L, from 0 to 1; 0 outside the blocks."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """What becomes of every tensor of the reference (the base, or else the first expert)."""

    merged: tuple[Tensor, ...]
    kept: Mapping[str, str]
    """Tensors that are copied from the reference → why."""
    dropped: Mapping[str, str]
    """Tensors of the experts that the reference lacks, and so the output → whose they are."""
    entries: Mapping[str, Entry]
    """The output's tensors."""


def tower(name: str) -> str:
    """``vision`` or ``text``: a CLIP's image tower is named visual, vision_model, visual_projection and the like."""
    return "vision" if _VISION.match(name) else "text"


def block(name: str) -> tuple[str, int] | None:
    """The stack of blocks that a tensor belongs to, and which block it is of; None outside all stacks."""
    match = _BLOCK.search(name)
    return (name[: match.start(1)], int(match.group(1))) if match else None


def layout(reference: Source, others: Mapping[str, Source], grouping: Scope, dtype: str | None) -> Layout:
    """Sort the reference's tensors into merged and kept; ``others`` go by what the report calls them.

    The rule: a tensor is merged where it holds floating-point numbers and every model has it in one shape (a 0-d and
    a one-element 1-d tensor are the same scalar; the output takes the reference's shape). Anything else, such as
    integer buffers and position ids, empty tensors, and what some model lacks or has in another shape, is copied
    from the reference. What only the others have is left out.

    Raises:
        UserError: nothing at all can be merged.
    """
    depth: dict[str, int] = {}
    for name in reference.entries:
        if (at := block(name)) is not None:
            depth[at[0]] = max(depth.get(at[0], 0), at[1] + 1)
    merged: list[Tensor] = []
    kept: dict[str, str] = {}
    entries: dict[str, Entry] = {}
    for name in sorted(reference.entries):
        entry = reference.entries[name]
        reason = _reason_to_keep(name, entry, others)
        if reason is not None:
            kept[name] = reason
            entries[name] = entry
            continue
        at = block(name)
        deep = at[1] / max(1, depth[at[0]] - 1) if at else 0.0
        group = {"tensor": name, "tower": tower(name), "model": "model"}[grouping]
        entries[name] = Entry(dtype or entry.dtype, entry.shape)
        merged.append(Tensor(name, entry.shape, dtype or entry.dtype, group, deep))
    if not merged:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in list(kept.items())[:3])
        raise UserError(f"{reference.label}: none of its tensors can be merged ({reasons or 'it has none'})")
    dropped: dict[str, str] = {}
    for label, other in others.items():
        for name in sorted(other.entries.keys() - reference.entries.keys()):
            dropped.setdefault(name, label)
    return Layout(tuple(merged), kept, dropped, entries)


def _reason_to_keep(name: str, entry: Entry, others: Mapping[str, Source]) -> str | None:
    if entry.dtype not in FLOATS:
        return f"{entry.dtype} is not merged"
    if entry.size == 0:
        return "empty"
    for label, other in others.items():
        theirs = other.entries.get(name)
        if theirs is None:
            return f"missing from {label}"
        if theirs.dtype not in FLOATS:
            return f"{theirs.dtype} in {label}"
        if theirs.shape != entry.shape and {theirs.shape, entry.shape} != {(), (1,)}:
            return f"shape {list(theirs.shape)} in {label}, here {list(entry.shape)}"
    return None
