"""Which tensors are merged, which are averaged as statistics or copied, and their layers, towers and groups."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tasks.errors import UserError
from tasks.merge import buffers
from tasks.merge import reading as pieces
from tasks.merge.tied import find_tied
from tasks.merge.types import GramForm, Scope
from tasks.model import dialects
from tasks.model.dtypes import FLOATS, INTEGERS
from tasks.model.sources import TensorEntry, TensorSource, equal
from tasks.model.translated import Translated
from tasks.text import one_line, shortened

_BLOCK = re.compile(r"(?:^|\.)(?:resblocks|layers|layer|blocks|block|h|stages)\.(\d+)\.")
_VISION = re.compile(r"^(?:model\.)?(?:visual|vision|image)(?=[._])")
_MASK = re.compile(r"(?:^|[._])(?:attn_?mask|attention_mask|causal_mask|mask|masked_bias)$")
_ROUNDING = {"F64": 2.0**-21, "F32": 2.0**-21, "BF16": 2.0**-7, "F16": 2.0**-10}
"""By dtype, what equal numbers may differ by, relative to them: computed in float32 on any device, then stored."""
_NAMED = 5
"""Tensors that a message names."""


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
    precision: type[np.floating[Any]] = np.float32
    """What it is computed in: float64 where an input is."""
    tied: tuple[str, ...] = ()
    """Other names of the same tensor."""
    gram: GramForm | None = None
    """How the experts' statistics hold its Gram matrix, where the technique asks for those."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def state_dtype(self) -> str:
        """Of a running state's arrays, as safetensors names it."""
        return "F64" if self.precision is np.float64 else "F32"


@dataclass(frozen=True)
class MergeLayout:
    """What becomes of every tensor of the reference (the base, or else the first expert)."""

    merged: tuple[Tensor, ...]
    statistics: tuple[str, ...]
    """Moments and counts of data (`buffers.AVERAGED`), which no technique sees."""
    kept: Mapping[str, str]
    """Tensors that are copied from the reference → why."""
    dropped: Mapping[str, str]
    """Tensors of the experts that the reference lacks, and so the output → whose they are."""
    entries: Mapping[str, TensorEntry]
    """The output's tensors."""
    notes: tuple[str, ...]
    """What the user should know."""


def tower(name: str) -> str:
    """``vision`` or ``text``: a CLIP's image tower is named visual, vision_model, visual_projection and the like."""
    return "vision" if _VISION.match(name) else "text"


def block(name: str) -> tuple[str, int] | None:
    """The stack of blocks that a tensor belongs to, and which block it is of; None outside all stacks."""
    match = _BLOCK.search(name)
    return (name[: match.start(1)], int(match.group(1))) if match else None


@dataclass(frozen=True)
class Rules:
    """How tensors are sorted."""

    grouping: Scope = "tensor"
    dtype: str | None = None
    """Of merged tensors in the output; None: the reference's."""
    keep_missing: bool = False
    """Whether the reference's tensors may be most of the output, where the others lack them."""
    keep_mismatched: bool = False
    """Whether a tensor whose shape differs between the models is the reference's; if not, that is an error."""
    reference: str = "the base"
    """What the report calls the reference."""
    copied: Mapping[str, str] = field(default_factory=dict)
    """Tensors known to be the same in all models, to be copied → why."""


def layout(
    reference: TensorSource, others: Mapping[str, TensorSource], read: Collection[TensorSource], rules: Rules
) -> MergeLayout:
    """Sort the reference's tensors; ``others`` go by what the report calls them, ``read`` are those to compute with.

    A tensor is merged where it holds floating-point numbers and every model has it in one shape (a 0-d and a
    one-element 1-d tensor are the same scalar; the output takes the reference's shape). Moments and counts of data
    are averaged. Masks that are the same in all models are copied. Integers, empty tensors, and what some model
    lacks or has in another shape, are copied from the reference. What only the others have is left out.

    Raises:
        UserError: a model is an adapter or quantised; a tensor differs between the models and cannot be merged: by
            its dtype, as a matrix of integers, or as a buffer that belongs to one model; it has another shape in one
            of them; the models share less than half of the reference's parameters; or nothing can be merged.
    """
    for label, source in {reference.label: reference, **others}.items():
        require_model(label, source)
    depth: dict[str, int] = {}
    for name in reference.entries:
        if (at := block(name)) is not None:
            depth[at[0]] = max(depth.get(at[0], 0), at[1] + 1)
    ties = find_tied({rules.reference: reference, **others})
    names_of = ties.names()
    merged: list[Tensor] = []
    statistics: list[str] = []
    kept: dict[str, str] = {}
    entries: dict[str, TensorEntry] = {}
    notes: list[str] = list(ties.notes)
    for name in sorted(reference.entries):
        entry = reference.entries[name]
        entries[name] = entry
        if name in ties.representative:
            entries[name] = TensorEntry(rules.dtype or entry.dtype, entry.shape)
            continue
        reason = rules.copied.get(name) or _reason_to_keep(
            name, entry, reference, others, keep_mismatched=rules.keep_mismatched
        )
        if reason is None and _MASK.search(name):
            if _same_in_all(name, reference, others):
                reason = "a mask, the same in all models"
            else:
                notes.append(f"{name} is named like a mask and differs between the models; it was merged like a weight")
        if reason is not None:
            kept[name] = reason
            continue
        if entry.dtype in FLOATS:
            entries[name] = TensorEntry(rules.dtype or entry.dtype, entry.shape)
        if buffers.AVERAGED.search(name):
            statistics.append(name)
            continue
        at = block(name)
        deep = at[1] / max(1, depth[at[0]] - 1) if at else 0.0
        group = {"tensor": name, "tower": tower(name), "model": "model"}[rules.grouping]
        wide = any(source.entries[name].dtype == "F64" for source in read)
        precision = np.float64 if wide else np.float32
        tensor = Tensor(name, entry.shape, entries[name].dtype, group, deep, precision, names_of.get(name, ()))
        merged.append(tensor)
    if not merged:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in list(kept.items())[:3])
        differing = [o for o in others.values() if o.entries.keys() != reference.entries.keys()]
        difference = f"; {_difference(reference, differing[0])}" if differing else ""
        raise UserError(
            f"{reference.label}: none of its tensors can be merged ({reasons or 'it has none'}){difference}"
        )
    if not rules.keep_mismatched:
        _require_one_shape(reference, others, rules.reference)
    for alias, name in ties.representative.items():  # a tensor and its other names have one fate
        if name in kept:
            kept[alias] = f"the same tensor as {name}"
            entries[alias] = reference.entries[alias]
    if not rules.keep_missing:
        _require_half(reference, others, kept)
    narrowed = [t.name for t in merged if t.precision is np.float64 and t.dtype != "F64"]
    if narrowed:
        notes.append(f"computed in float64 and rounded to the output's dtype: {listed(narrowed)}")
    dropped: dict[str, str] = {}
    for label, other in others.items():
        for name in sorted(other.entries.keys() - reference.entries.keys()):
            dropped.setdefault(name, label)
    return MergeLayout(tuple(merged), tuple(statistics), kept, dropped, entries, tuple(notes))


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(shortened(one_line(name), 100) for name in names[:_NAMED]) + rest


def require_model(label: str, source: TensorSource) -> None:
    where = source.label if label == source.label else f"{label} ({source.label})" if source.label else label
    if adapter := dialects.adapter(source.entries):
        kind, name = adapter
        raise UserError(
            f"{where}: is a {kind} adapter ({name!r}), not a model: its factors cannot be merged one by one. Merge "
            "each adapter into its base first, with peft's merge_and_unload, and give the models that come out; or "
            "give the adapter's folder, with its adapter_config.json, and --base"
        )
    if pair := dialects.quantised({name: (e.dtype, e.shape) for name, e in source.entries.items()}):
        weight, companion = pair
        raise UserError(
            f"{where}: holds quantised weights ({weight!r}, {source.entries[weight].dtype}, with {companion!r}): "
            "weights and their scales cannot be merged one by one. Dequantise it first (load it in bfloat16 or "
            "float32, and save it), or give the model it was made from"
        )


def _require_half(reference: TensorSource, others: Mapping[str, TensorSource], kept: Mapping[str, str]) -> None:
    """Refuse a merge in which most parameters are the reference's own."""
    names = reference.entries
    floats = {n: e.size for n, e in names.items() if e.dtype in FLOATS and e.size and not buffers.derived(n, names)}
    lacking = {n for n, reason in kept.items() if n in floats and not reason.endswith("same in all models")}
    share = 1 - sum(floats[name] for name in lacking) / max(1, sum(floats.values()))
    if share >= 0.5:
        return

    label, least = min(others.items(), key=lambda item: _common(reference, item[1]))
    shared = len(reference.entries.keys() & least.entries.keys() - lacking)
    raise UserError(
        f"{label} shares {shared} of {len(reference.entries)} tensors ({share:.2%} of the parameters) with "
        f"{reference.label}, so most of the output would be a copy: {_difference(reference, least)}; or keep the rest "
        "as it is with --on-missing keep"
    )


def _require_one_shape(reference: TensorSource, others: Mapping[str, TensorSource], called: str) -> None:
    """Refuse a merge in which a tensor has another shape in one of the models than in the others."""
    for label, other in others.items():
        differing = [
            (name, theirs.shape, ours.shape)
            for name, ours in sorted(reference.entries.items())
            if (theirs := other.entries.get(name)) is not None
            and theirs.shape != ours.shape
            and {theirs.shape, ours.shape} != {(), (1,)}
        ]
        if differing:
            name, theirs_shape, ours_shape = differing[0]
            more = f" (and {len(differing) - 1} more differ)" if len(differing) > 1 else ""
            raise UserError(
                f"{label}: tensor {name!r} has shape {list(theirs_shape)}, {called} has {list(ours_shape)}{more}; give "
                f"models of one architecture, or keep those of {called} with --on-mismatch base"
            )


def _common(reference: TensorSource, other: TensorSource) -> int:
    """Parameters that both have, by name and shape."""
    theirs = other.entries
    return sum(e.size for n, e in reference.entries.items() if n in theirs and theirs[n].shape == e.shape)


def _difference(reference: TensorSource, other: TensorSource) -> str:
    """How two models differ, and what to do about it."""
    ours, theirs = (sorted(a.entries.keys() - b.entries.keys()) for a, b in ((reference, other), (other, reference)))
    if ours and theirs:
        return (
            f"{reference.label} has {dialects.naming(reference.entries)} names ({listed(ours)}); "
            f"{other.label} has {dialects.naming(other.entries)} names ({listed(theirs)}). "
            "Rename the tensors of one like those of the other"
        )
    pairs = {n: (e.shape, other.entries[n].shape) for n, e in reference.entries.items() if n in other.entries}
    if reshaped := [f"{n} {list(a)} and {list(b)}" for n, (a, b) in sorted(pairs.items()) if a != b]:
        return f"shapes differ: {listed(reshaped)}. Give models of one architecture"
    if not ours:
        return "names and shapes are the same, but few are floating-point weights in both. Give models that have such"
    own = f" (its own names: {listed(sorted(other.own_names))})" if isinstance(other, Translated) else ""
    return f"{other.label}{own} lacks {listed(ours)}. Give complete models"


def _reason_to_keep(
    name: str,
    entry: TensorEntry,
    reference: TensorSource,
    others: Mapping[str, TensorSource],
    *,
    keep_mismatched: bool,
) -> str | None:
    counts = buffers.COUNTS.search(name) is not None
    if entry.size == 0:
        return "empty"
    if derived := buffers.derived(name, reference.entries):
        return _kept_derived(name, derived, reference, others, keep_mismatched=keep_mismatched)
    if entry.dtype in INTEGERS and not counts:
        differing = [label for label, other in others.items() if not _integers_agree(name, reference, other)]
        if differing and len(entry.shape) > 1 and not keep_mismatched:
            raise UserError(
                f"tensor {name!r} holds integers ({entry.dtype}) that differ between the models ({differing[0]}), so a "
                "copy of one of them would not fit the merged rest. If it is a quantised or packed weight, dequantise "
                "it first; if one model's will do, take it with --on-mismatch base"
            )
        return f"{entry.dtype} is not merged" + (f" and differs in {differing[0]}" if differing else "")
    for label, other in others.items():
        theirs = other.entries.get(name)
        if theirs is None:
            return f"missing from {label}"
        if theirs.dtype not in FLOATS and theirs.dtype in INTEGERS and not counts:
            if len(entry.shape) > 1 and not keep_mismatched:
                raise UserError(
                    f"tensor {name!r} is {entry.dtype} in {reference.label} and holds integers ({theirs.dtype}) in "
                    f"{label}: if it is a quantised weight, dequantise it first; to keep that of {reference.label}, "
                    "take --on-mismatch base"
                )
            return f"{theirs.dtype} in {label}"
        if theirs.shape != entry.shape and {theirs.shape, entry.shape} != {(), (1,)}:
            return f"shape {list(theirs.shape)} in {label}, {list(entry.shape)} in the reference"
    dtypes = {entry.dtype, *(other.entries[name].dtype for other in others.values())}
    strange = sorted(dtypes - {*FLOATS, *INTEGERS})
    if not strange:
        return None
    if _same_in_all(name, reference, others):
        return f"{entry.dtype}, the same in all models"
    raise UserError(
        f"tensor {name!r} is {' and '.join(sorted(dtypes))} and differs between the models; {strange[0]} cannot be "
        "merged: convert it to bfloat16 or float32 first"
    )


def _kept_derived(
    name: str, derived: str, reference: TensorSource, others: Mapping[str, TensorSource], *, keep_mismatched: bool
) -> str:
    """Why a buffer that belongs to one model's weights or rounding is copied.

    Raises:
        UserError: it differs between the models, and that of the reference was not asked for.
    """
    for label, other in others.items():
        if name not in other.entries:
            return f"missing from {label}"
        if not (equal(reference, name, other, name) or _same_rotation(name, reference, other)):
            if keep_mismatched:
                return f"derived from one model's own, and differs in {label}"
            raise UserError(
                f"tensor {name!r} differs between the models ({label}) and is {derived}; if that of {reference.label} "
                "will do, take it with --on-mismatch base"
            )
    return "a derived buffer, the same in all models"


def _same_rotation(name: str, reference: TensorSource, other: TensorSource) -> bool:
    """Whether two tensors of a rotary embedding differ by no more than the rounding of dtypes and devices."""
    ours, theirs = reference.entries[name], other.entries[name]
    if not buffers.ROTARY.search(name) or ours.shape != theirs.shape or {ours.dtype, theirs.dtype} - _ROUNDING.keys():
        return False
    relative = max(_ROUNDING[one.dtype] for one in (ours, theirs))
    # A scaling may change the smallest frequencies alone; a cosine may be 0. Float16's smallest step is 2^-24.
    absolute = relative if "inv_freq" not in name else 2.0**-24 if "F16" in (ours.dtype, theirs.dtype) else 0.0
    first, second = (pieces.read(one, name, 0, ours.size, precision=np.float64) for one in (reference, other))
    return np.allclose(first, second, rtol=relative, atol=absolute)


def _integers_agree(name: str, reference: TensorSource, other: TensorSource) -> bool:
    """Whether another model has the reference's integers, or has no tensor of that name."""
    return name not in other.entries or equal(reference, name, other, name)


def _same_in_all(name: str, reference: TensorSource, others: Mapping[str, TensorSource]) -> bool:
    return all(equal(reference, name, other, name) for other in others.values())
