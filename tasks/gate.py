"""The gate of a timeline: conditions on a state's metrics, which decide whether it is promoted or held.

A condition reads ``NAME OP NUMBER``. OP is one of ``<= < >= >``. All numbers are shares of one: ``0.02`` and ``2%`` are
the same, and a bare number beyond one is refused, since ``metrics.json`` counts in percent and ``2`` could mean either.

| NAME | is |
|---|---|
| ``A_KA``, ``A_ZS``, ``geometric_mean`` | as in ``metrics.json`` |
| ``score.SET`` | what the evaluation set SET counts by: top-1, or mean recall@5 (`tasks.scores`) |
| ``head.NAME@SHOTS.SET`` | the top-1 of a head of ``evaluate.heads`` on a set, or ``A_KA``, ``A_ZS`` for SET |
| ``compatibility_drop`` | how much less is found in an index of an earlier state than by that state itself |
| ``accumulation_gain``, ``geometric_mean_gain`` | how much higher A_KA, the geometric mean is than the reference's |
| ``retention_drop`` | how much lower A_ZS is than the reference's |

The reference is the newest promoted state. A difference to a state that was tested on other sets, or on a share of
them, means nothing: such a condition is left open, and holds no state back. So is one on a head where it is not scored.

``compatibility_drop`` is of recall@1, the largest over all earlier states from that of ``deploy.compatible_with`` on
(`tasks.evaluate.compatibility`); it is open where there is none yet.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from tasks.errors import UserError
from tasks.scores import MEANS, ROLES, scores

OPERATORS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}
DIFFERENCES = {
    "accumulation_gain": ("A_KA", 1, ROLES[:1]),
    "retention_drop": ("A_ZS", -1, ROLES[1:]),
    "geometric_mean_gain": ("geometric_mean", 1, ROLES),
}
"""Name → the metric, the sign of its change that counts, and the roles of the sets that it is a mean over."""
SCORE = "score."
HEAD = "head."
COMPATIBILITY = "compatibility_drop"
_HEAD = re.compile(r"head\.(?P<name>[^@]+)@(?P<shots>\d+|all)\.(?P<set>.+)")
DIGITS = 6
"""Decimals of a share: as fine as ``metrics.json``, so that 30 % less 28 % is 0.02 and not a bit more."""

_FORM = re.compile(r"\s*([A-Za-z]\S*)\s*(<=|>=|<|>)\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*(%?)\s*")


@dataclass(frozen=True)
class Condition:
    """One condition; ``bound`` is a share of one."""

    name: str
    op: str
    bound: Decimal

    def __str__(self) -> str:
        return f"{self.name} {self.op} {(self.bound * 100).normalize():f}%"

    def holds(self, value: float) -> bool:
        return bool(OPERATORS[self.op](value, float(self.bound)))


def parse(text: str) -> Condition:
    """Read a condition.

    Raises:
        ValueError: it is none; says what it should be.
    """
    match = _FORM.fullmatch(text)
    if not match:
        raise ValueError(f"a condition is NAME OP NUMBER, such as retention_drop <= 2%; OP is {', '.join(OPERATORS)}")
    name, op, number, percent = match.groups()
    if name.startswith(HEAD) and not _HEAD.fullmatch(name):
        raise ValueError(f"{name}: the score of a head is {HEAD}NAME@SHOTS.SET, such as head.gda@16.food")
    if name not in (*MEANS, *DIFFERENCES, COMPATIBILITY) and not name.startswith((SCORE, HEAD)):
        known = ", ".join((*MEANS, *DIFFERENCES, COMPATIBILITY))
        raise ValueError(f"no value is called {name}; there are {known}, {SCORE}SET and {HEAD}NAME@SHOTS.SET")
    bound = Decimal(number) / 100 if percent else Decimal(number)
    if abs(bound) > 1:
        raise ValueError(
            f"{number}{percent} is beyond 100%; numbers are shares of one, so write {number}% or a fraction"
        )
    return Condition(name, op, bound)


def require_sets(conditions: Iterable[str], names: Collection[str]) -> None:
    """Check that conditions on single sets name some that are evaluated.

    Raises:
        ValueError: names the one that is not, and those that are.
    """
    for text in conditions:
        name = parse(text).name
        if name.startswith(SCORE) and name.removeprefix(SCORE) not in names:
            raise ValueError(
                f"{text}: no evaluation set is called {name.removeprefix(SCORE)}; there are {', '.join(names)}"
            )


def require_compatibility(conditions: Iterable[str], *, measured: bool) -> None:
    """Check that there is no condition on compatibility where it is not measured.

    Raises:
        ValueError: there is one.
    """
    for text in conditions:
        if parse(text).name == COMPATIBILITY and not measured:
            raise ValueError(f"{text}: compatibility is not measured; add compatibility: all to evaluate")


def require_heads(conditions: Iterable[str], heads: Mapping[str, Collection[str]], sets: Collection[str]) -> None:
    """Check that conditions on heads name some that are scored; ``heads`` are their numbers of shots, by name.

    Raises:
        UserError: names the one that is not, and those that are.
    """
    for text in conditions:
        named = _HEAD.fullmatch(parse(text).name)
        if not named:
            continue
        if named["name"] not in heads:
            known = ", ".join(heads) or "none; list it in evaluate.heads"
            raise UserError(f"gate.require: {text}: no head is called {named['name']}; there are {known}")
        shots = heads[named["name"]]
        if named["shots"] not in shots:
            at = ", ".join(shots)
            raise UserError(
                f"gate.require: {text}: {named['name']} is not scored at {named['shots']} shots, but at {at}"
            )
        if named["set"] not in (*sets, *MEANS[:2]):
            raise UserError(
                f"gate.require: {text}: no evaluation set is called {named['set']}; there are {', '.join(sets)}"
            )


def asked(condition: str) -> tuple[tuple[str, ...], str | None]:
    """What a condition looks at: the roles of sets, or one set by name."""
    name = parse(condition).name
    if name.startswith(SCORE):
        return (), name.removeprefix(SCORE)
    if name == COMPATIBILITY or _HEAD.fullmatch(name):  # measured on all samples anyway
        return (), None
    roles = {"A_KA": ROLES[:1], "A_ZS": ROLES[1:], "geometric_mean": ROLES}
    return (roles[name] if name in roles else DIFFERENCES[name][2]), None


@dataclass(frozen=True)
class ConditionOutcome:
    """The result of a condition: ``value`` is a share of one; both are None where there is nothing to compare with."""

    condition: str
    value: float | None
    holds: bool | None

    def __str__(self) -> str:
        return (
            f"{self.condition} (nothing to compare with)"
            if self.value is None
            else f"{self.condition} ({self.value:.2%})"
        )


@dataclass(frozen=True)
class GateVerdict:
    """Whether a state is promoted, and why."""

    promoted: bool
    conditions: tuple[ConditionOutcome, ...]
    compared_with: str | None
    """The tag of the reference, where any condition has looked at it."""

    def as_dict(self) -> dict[str, Any]:
        """The ``gate`` of a ``manifest.json``."""
        return {**asdict(self), "conditions": [asdict(outcome) for outcome in self.conditions]}


@dataclass(frozen=True)
class GateReference:
    """The state that differences are taken to."""

    tag: str
    metrics: Mapping[str, Any]
    same: Collection[str]
    """The `ROLES` whose evaluation sets are those of the judged state: the same names, the same content, all of it."""


def judge(conditions: Iterable[str], metrics: Mapping[str, Any], reference: GateReference | None) -> GateVerdict:
    """Judge a state by its ``metrics.json`` and that of the reference: promoted unless a condition fails."""
    outcomes = []
    compared = False
    for text in conditions:
        condition = parse(text)
        value = _value(condition.name, metrics, reference)
        compared |= value is not None and condition.name in DIFFERENCES
        outcomes.append(ConditionOutcome(text, value, None if value is None else condition.holds(value)))
    promoted = all(outcome.holds is not False for outcome in outcomes)
    return GateVerdict(promoted, tuple(outcomes), reference.tag if reference and compared else None)


def _value(name: str, metrics: Mapping[str, Any], reference: GateReference | None) -> float | None:
    if name.startswith(SCORE):
        return _share(scores(metrics)[name.removeprefix(SCORE)])
    if named := _HEAD.fullmatch(name):
        return _of_head(metrics.get("heads", {}).get(named["name"], {}), named["shots"], named["set"])
    if name == COMPATIBILITY:
        drop = metrics.get("compatibility", {}).get("drop")
        return None if drop is None else _share(drop)
    if name in MEANS:
        return _share(metrics[name])
    metric, sign, roles = DIFFERENCES[name]
    if reference is None or not set(roles) <= set(reference.same):
        return None
    return _share(sign * (metrics[metric] - reference.metrics[metric]))


def _of_head(metrics: Mapping[str, Any], shots: str, name: str) -> float | None:
    """None where the head is not scored: on a set with a class that has not arrived yet, say."""
    score = metrics.get(name, {}).get(shots) if name in MEANS else metrics.get("top1", {}).get(shots, {}).get(name)
    return None if score is None else _share(score)


def _share(percent: float) -> float:
    return round(percent / 100, DIGITS) + 0.0  # never -0.0
