"""One coefficient of a technique, chosen by what the merged model scores on held-out samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from tasks import gate
from tasks.errors import UserError
from tasks.fit.method import FitMethod, Problem
from tasks.fit.scores import scorer_of
from tasks.gate import DIFFERENCES, HEAD, SCORE, GateReference
from tasks.merge import Accumulator, FitResult, Technique
from tasks.merge import create as create_technique
from tasks.merge.technique import numbers
from tasks.params import Params
from tasks.scores import MEANS, ROLES

_GOLDEN = (math.sqrt(5) - 1) / 2
Point = dict[str, Any]
"""A value of the setting, and what the model merged with it scores."""


class Paint(FitMethod):
    """One setting of the technique: the value with the best geometric mean on held-out samples that holds the gate.

    Accumulation is measured on the arrivals' pools, retention on the pretraining pool. Where no value holds the gate's
    conditions, the one that falls short of them least.
    """

    name: ClassVar[str] = "paint"
    source: ClassVar[str] = (
        "Ilharco et al. 2022, Patching open-vocabulary models by interpolating weights (arXiv 2208.05592); "
        "Wortsman et al. 2022, Robust fine-tuning of zero-shot models (arXiv 2109.01903)"
    )
    learns: ClassVar[bool] = False

    setting: str = "weight"
    """Which: ``weight`` is the new expert's share, ``scale`` the λ of task arithmetic."""
    search: Literal["grid", "golden"] = "grid"
    """Evenly spaced values, or golden-section search: fewer merges where the scores have one peak."""
    low: float = 0.0
    """The least value."""
    high: float = 1.0
    """The largest."""
    values: int = Field(default=11, ge=3)
    """How many are tried."""
    samples: int = Field(default=256, gt=0)
    """Held-out samples of a pool, at most."""

    @model_validator(mode="after")
    def _ascends(self) -> Paint:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low {self.low:g} is not less than high {self.high:g}")
        return self

    def check(self, params: Params, technique: Technique) -> list[str]:
        known = [name for name in numbers(type(technique)) if name in type(technique).model_fields]
        if self.setting not in known:
            listed = ", ".join(known) or "none"
            raise UserError(f"fit.setting: {technique.name} has no number {self.setting!r}; it has {listed}")
        for value in (self.low, self.high):
            with_setting(technique, params.time.technique.name, self.setting, value)
        if params.time.deploy == "all":
            self._check_all(technique)
        if not params.base.pretraining:
            raise UserError(
                "fit: paint measures retention on the base's pretraining pool, and base.pretraining names none; name "
                "data that the base knows"
            )
        named = {"pretraining", *(arrival.name for arrival in params.stream if arrival.update)}
        return [f"fit: {one}: not measured on held-out samples" for one in _conditions(params, named)[1]]

    def _check_all(self, technique: Technique) -> None:
        if self.setting == "weight":
            raise UserError("fit.setting: weight is the share of two models, and deploy: all merges all experts")
        if not (isinstance(technique, Accumulator) and technique.sequential):
            return
        if self.setting not in technique.output_settings:
            free = ", ".join(sorted(technique.output_settings)) or "none"
            raise UserError(
                f"fit.setting: with deploy: all, {technique.name} keeps a running state that depends on "
                f"{self.setting}, so it cannot change from step to step; settings that can: {free}"
            )

    def fit(self, problem: Problem) -> tuple[FitResult, dict[str, Any]]:
        empty = problem.samples.require_held()
        scorer = scorer_of(problem, self.samples)
        if "pretraining" not in scorer.sizes:
            raise UserError("fit: no sample of the pretraining pool is held out; raise train.holdout")
        required, left_open = _conditions(problem.params, scorer.sizes)
        reference = None
        if any(gate.parse(one).name in DIFFERENCES for one in required):
            before = scorer.score(problem.reference)
            reference = GateReference("the deployed model before", before, ROLES)
        points: list[Point] = []
        name = problem.params.time.technique.name

        def tried(value: float) -> Point:
            scored = scorer.score(problem.merged(with_setting(problem.technique, name, self.setting, value)))
            verdict = gate.judge(required, scored, reference)
            short = sum(_short(one.condition, one.value) for one in verdict.conditions if one.value is not None)
            kept = {name: scored[name] for name in MEANS}
            points.append({"value": value, **kept, "holds": verdict.promoted, "short": round(short, gate.DIGITS)})
            problem.progress("fit", len(points), self.values, f"{self.setting} {value:.4g}")
            return points[-1]

        search = golden if self.search == "golden" else grid
        best = search(tried, rank, self.low, self.high, self.values)
        if not best["holds"]:
            said = f"no {self.setting} holds the gate's conditions on held-out samples; took the one nearest to them"
            problem.progress("note:", 1, 1, f"fit: {said}")
        settings = {**_given(problem.technique), self.setting: best["value"]}
        report = {
            "setting": self.setting, "value": best["value"], "holds": best["holds"],
            "curve": sorted(points, key=lambda point: point["value"]), "samples": scorer.sizes,
            "conditions": required, "left_open": left_open, "without_samples": empty,
        }  # fmt: skip
        if reference:
            report["reference"] = {name: reference.metrics[name] for name in MEANS}
        return FitResult(technique=name, settings=settings), report


def rank(point: Point) -> tuple[float, float]:
    """What is least for the best point: how far it is from the conditions, then less its geometric mean."""
    return point["short"] if not point["holds"] else 0.0, -point["geometric_mean"]


def grid(tried: Callable[[float], Point], by: Callable[[Point], Any], low: float, high: float, count: int) -> Point:
    """The best of ``count`` evenly spaced values; of equally good ones the least."""
    return min((tried(low + (high - low) * i / (count - 1)) for i in range(count)), key=by)


def golden(tried: Callable[[float], Point], by: Callable[[Point], Any], low: float, high: float, count: int) -> Point:
    """The best of ``count`` values: both ends, then golden-section search, which keeps 0.618 of the interval a value.

    Finds the only peak of a curve that has but one; the ends are tried too, since the peak may be there.
    """
    points = [tried(low), tried(high)]
    a, b = low, high
    left = right = None
    while len(points) < count:
        if left is None:
            left = tried(b - _GOLDEN * (b - a))
            points.append(left)
        elif right is None:
            right = tried(a + _GOLDEN * (b - a))
            points.append(right)
        if left is not None and right is not None:
            if by(left) <= by(right):
                b, left, right = right["value"], None, left
            else:
                a, left, right = left["value"], right, None
    return min(sorted(points, key=lambda point: float(point["value"])), key=by)


def with_setting(technique: Technique, name: str, setting: str, value: float) -> Technique:
    """The technique, ``name`` in params.yaml, with another value of a setting.

    Raises:
        UserError: the technique does not accept it.
    """
    return create_technique(name, {**_given(technique), setting: value})


def _given(technique: Technique) -> dict[str, Any]:
    dumped = technique.model_dump(mode="json")
    return {key: dumped[key] for key in technique.model_fields_set if key in dumped}


def _conditions(params: Params, pools: Collection[str]) -> tuple[list[str], list[str]]:
    """The gate's conditions that can be judged on pools of these names, and those that cannot."""
    judged: list[str] = []
    left: list[str] = []
    for text in params.gate.require if params.gate else []:
        name = gate.parse(text).name
        unknown = name.startswith(SCORE) and name.removeprefix(SCORE) not in pools
        (left if unknown or name.startswith(HEAD) else judged).append(text)
    return judged, left


def _short(text: str, value: float) -> float:
    """How far a value is from a condition, a share of one; what is at the bound of < and > is short of it."""
    condition = gate.parse(text)
    if condition.holds(value):
        return 0.0
    return max(abs(value - float(condition.bound)), 10.0**-gate.DIGITS)
