"""Which techniques fit which protocol of TIME (arXiv 2412.06712): checked before any expert is trained."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from tasks.errors import UserError
from tasks.merge.sequential import Accumulator
from tasks.merge.technique import Technique, create
from tasks.params import Time


def has_sequential_form(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether deploying the merge of all experts reads one expert and a running state, rather than every expert.

    Raises:
        UserError: unknown technique or setting.
    """
    return for_all(create(name, settings)).sequential


def for_all(technique: Technique) -> Technique:
    """The technique as `deploy: all` uses it: the share of two models says nothing about many."""
    if "weight" not in type(technique).model_fields:
        return technique
    others = {p: {k: v for k, v in own.items() if k != "weight"} for p, own in (technique.parts or {}).items()}
    parts = {pattern: own for pattern, own in others.items() if own} or None
    return technique.model_copy(update={"weight": None, "parts": parts})


def check(time: Time, steps: int) -> list[str]:
    """Refuse what cannot work over ``steps`` time steps; return what is worth a warning.

    Raises:
        UserError: unknown technique or setting, a technique of two models where all are merged, or a recursion that
            diverges.
    """
    technique = create(time.technique.name, time.technique.settings)
    fewest, most = technique.models
    warnings: list[str] = []
    if time.deploy == "all":
        if most is not None and steps > most:
            raise UserError(
                f"{technique.name} merges {most} models, and deploy: all merges all {steps} experts; "
                "choose deploy: ema, or another technique"
            )
        if fewest > 1:
            raise UserError(
                f"{technique.name} merges at least {fewest} models, and deploy: all has one after the first time step; "
                "choose deploy: ema, or another technique"
            )
        chosen = for_all(technique)
        if technique.statistics and not chosen.sequential:
            raise UserError(
                f"{technique.name} has no sequential form with these settings, and only the newest expert is measured "
                "at a time step; choose deploy: ema, or LiNeS with a number for alpha"
            )
        if not (isinstance(chosen, Accumulator) and chosen.sequential) and steps > 1:
            warnings.append(
                f"{technique.name} has no sequential form with these settings: every time step reads all experts so far"
            )
        chosen.weights(1)
    if time.uses_ema:
        if fewest > 2 or (most is not None and most < 2):
            raise UserError(
                f"{technique.name} cannot merge two models, as an EMA recursion does; choose another technique"
            )
        warnings.extend(_recursion(technique, trained_from_running=time.init == "ema"))
    return warnings


def _recursion(technique: Technique, trained_from_running: bool) -> list[str]:
    """The warnings of `Technique.recursion` for the whole model and for each part, gradients at each of their numbers.

    Raises:
        UserError: it diverges; says in which part.
    """
    warnings = technique.recursion(trained_from_running)
    for pattern, settings in (technique.parts or {}).items():
        values = [value if isinstance(value, tuple) else (value,) for value in settings.values()]
        for own in product(*values):
            try:
                told = technique.with_own(dict(zip(settings, own, strict=True))).recursion(trained_from_running)
            except UserError as error:
                raise UserError(f"parts.{pattern}: {error}") from None
            warnings += [f"parts.{pattern}: {warning}" for warning in told]
    return list(dict.fromkeys(warnings))
