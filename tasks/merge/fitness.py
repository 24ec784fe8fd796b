"""Whether statistics of experts' data fit a technique and the models: all that headers show, before any work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tasks.errors import UserError
from tasks.merge.layout import MergeLayout, Tensor
from tasks.merge.measured import ROUNDING, Measured
from tasks.merge.technique import Technique
from tasks.merge.types import GramForm
from tasks.model.sources import TensorSource, equal
from tasks.model.statistics import KINDS

_NAMED = 3
"""Tensors that a message names."""


def require_count(technique: Technique, experts: int, statistics: int) -> None:
    """Refuse statistics that a technique has no use for, and a technique without the statistics that it needs.

    Raises:
        UserError: says what to give or to leave out.
    """
    needed = technique.statistics
    if not needed and statistics:
        raise UserError(f"{technique.name} looks at no data; leave the statistics out")
    if needed and not statistics:
        raise UserError(
            f"{technique.name} needs statistics of each expert's own data ({', '.join(needed)}): give --statistics "
            "FILE for each --expert, in their order; `chronomerge measure` makes such a file"
        )
    if needed and statistics != experts:
        raise UserError(
            f"{statistics} statistics file{'s' * (statistics != 1)} for {experts} expert{'s' * (experts != 1)}; give "
            "one an expert, in their order"
        )


def check_statistics(
    technique: Technique,
    measured: Sequence[Measured],
    plan: MergeLayout,
    experts: Sequence[TensorSource],
    reference: TensorSource,
) -> MergeLayout:
    """Refuse statistics of another model; the layout, with the form of Gram matrices and what the user should know.

    Args:
        reference: the base.

    Raises:
        UserError: a file names a tensor that the model lacks, or has another shape; it lacks what the technique needs;
            or two files describe a tensor in different ways.
    """
    if not measured:
        return plan
    for one in measured:
        _check_names(one, reference)
    notes, merged = list(plan.notes), plan.merged
    if "fisher" in technique.statistics:
        for one, expert in zip(measured, experts, strict=True):
            notes += _check_fisher(technique, one, plan, expert, reference)
    if "gram" in technique.statistics:
        merged = tuple(replace(tensor, gram=_gram_form(measured, tensor)) for tensor in merged)
        averaged = sum(tensor.gram is None for tensor in merged)
        if averaged == len(merged):
            raise UserError(
                f"{measured[0].label}: holds no gram/NAME, which {technique.name} needs; measure it with gram"
            )
        if averaged:
            notes.append(f"averaged, without a Gram matrix: {averaged} tensor{'s' * (averaged != 1)}")
    estimators = {one.facts.estimator: one.label for one in measured}
    if len(estimators) > 1 and "fisher" in technique.statistics:
        told = " and ".join(f"{name} ({label})" for name, label in estimators.items())
        notes.append(f"the experts' statistics were estimated in different ways: {told}; they may weigh differently")
    return replace(plan, merged=merged, notes=tuple(notes))


def _check_names(one: Measured, reference: TensorSource) -> None:
    entries = one.source.entries
    for name in sorted(entries):
        kind, _, tensor = name.partition("/")
        if kind not in KINDS or not tensor:
            raise UserError(
                f"{one.label}: not a statistics file: the tensor {name!r} should be called fisher/NAME or gram/NAME"
            )
        if entries[name].dtype not in ROUNDING:
            raise UserError(f"{one.label}: {name!r} is {entries[name].dtype}; store it as float32")
        if tensor not in reference.entries:
            raise UserError(f"{one.label}: {name!r} is of another model: {reference.label} has no tensor {tensor!r}")
        if kind == "fisher":
            theirs, ours = entries[name].shape, reference.entries[tensor].shape
            if theirs != ours and {theirs, ours} != {(), (1,)}:
                raise UserError(
                    f"{one.label}: {name!r} has shape {list(theirs)}, and {tensor!r} has {list(ours)} in "
                    f"{reference.label}; the statistics are of another model"
                )


def _check_fisher(
    technique: Technique, one: Measured, plan: MergeLayout, expert: TensorSource, reference: TensorSource
) -> Iterator[str]:
    lacking = [tensor for tensor in plan.merged if one.entry("fisher", tensor) is None]
    if len(lacking) == len(plan.merged):
        raise UserError(f"{one.label}: holds no fisher/NAME, which {technique.name} needs; measure it with fisher")
    moved = [tensor.name for tensor in lacking if not equal(expert, tensor.name, reference, tensor.name)]
    if moved:
        rest = f" and {len(moved) - _NAMED} more" if len(moved) > _NAMED else ""
        raise UserError(
            f"{one.label}: lacks fisher/{', fisher/'.join(moved[:_NAMED])}{rest}, which {technique.name} needs: the "
            "expert differs from the base there"
        )
    if lacking:
        yield f"{one.label}: no Fisher for {len(lacking)} tensors in which the expert is the base; they weigh nothing"


def _gram_form(measured: Sequence[Measured], tensor: Tensor) -> GramForm | None:
    """The form that all files have a weight's Gram matrix in."""
    forms = [one.gram_form(tensor) for one in measured]
    for one, form in zip(measured, forms, strict=True):
        if form != forms[0]:
            raise UserError(
                f"{one.label}: has {_told(form)} for {tensor.name!r}, and {measured[0].label} has {_told(forms[0])}; "
                "measure all experts alike"
            )
    return forms[0]


def _told(form: GramForm | None) -> str:
    if form is None:
        return "no Gram matrix"
    return f"{'a Gram matrix' if form.full else 'the diagonal of a Gram matrix'} of {form.inputs} inputs"
