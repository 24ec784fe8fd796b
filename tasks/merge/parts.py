"""Settings by part of the model: which tensors a pattern names, and with which settings each tensor is merged.

A pattern names a tensor and all below it (``visual`` is ``visual.conv1.weight`` too), with ``*``, ``?`` and ``[…]`` for
any characters; ``vision`` and ``text`` are the towers. Of several that name a tensor the most specific rules, setting
by setting: the one with most characters that are no wildcards.

A list of numbers is a gradient over the layers of each tower: the first in the first layer, the last in the last,
others at equal distances, straight lines between; what is in no layer takes the first, and so does mergekit.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from tasks.errors import UserError
from tasks.merge.layout import MergeLayout, Tensor, block, listed, tower
from tasks.merge.technique import Technique, gradient_at

_WILDCARDS = re.compile(r"\[.*?\]|[*?]")
_TOWERS = ("vision", "text")
_NEAR = 6
"""Near parts that a message names."""


@dataclass(frozen=True)
class PartSettings:
    """What differs between tensors, by their names: a tensor that is not there has the settings of all."""

    techniques: Mapping[str, Technique] = field(default_factory=dict)
    weights: Mapping[str, Sequence[float]] = field(default_factory=dict)


def resolve(
    technique: Technique, plan: MergeLayout, count: int, weights: Mapping[str, Sequence[float]]
) -> tuple[MergeLayout, PartSettings]:
    """Settle the parts of a technique and of the models' weights (pattern → one a model) on a model's tensors.

    Tensors whose statistics are taken together, over a tower or the model, stay together where they agree in what these
    depend on (`Technique.ranked`); those that differ are groups of their own.

    Raises:
        UserError: a pattern matches no tensor; two that are equally specific differ; or a value is not accepted.
    """
    given = technique.parts or {}
    if not given and not weights:
        return plan, PartSettings()
    names = {alias: t.name for t in plan.merged for alias in (t.name, *t.tied)}
    matched = {pattern: _matched(pattern, names) for pattern in {**given, **weights}}
    notes = _noted(matched, plan)
    layers = layers_of(plan.entries)
    techniques: dict[str, Technique] = {}
    weighed: dict[str, Sequence[float]] = {}
    merged: list[Tensor] = []
    for tensor in plan.merged:
        own: dict[str, float] = {}
        for key in {key for settings in given.values() for key in settings}:
            values = {p: s[key] for p, s in given.items() if key in s and tensor.name in matched[p]}
            if values:
                own[key] = gradient_at(values[_ruling(values, key, tensor.name)], layers[tensor.name])
        if own:
            techniques[tensor.name] = technique.with_own(own)
        models = {p: w for p, w in weights.items() if tensor.name in matched[p]}
        if models:
            weighed[tensor.name] = models[_ruling(models, "weights", tensor.name)]
        elif own.keys() & technique.weighing:
            weighed[tensor.name] = techniques[tensor.name].weights(count)
        apart = [f"{key}={own[key]:g}" for key in sorted(own) if key in technique.ranked]
        whole = tensor.group == tensor.name or not apart
        merged.append(tensor if whole else replace(tensor, group=f"{tensor.group} {' '.join(apart)}"))
    return replace(plan, merged=tuple(merged), notes=(*plan.notes, *notes)), PartSettings(techniques, weighed)


def layers_of(names: Iterable[str]) -> dict[str, float]:
    """Where in its stack of blocks each tensor is, from 0 to 1; like mergekit 1 in an only block, 0 in none."""
    places = {name: block(name) for name in names}
    last: dict[str, int] = {}
    for at in places.values():
        if at is not None:
            last[at[0]] = max(last.get(at[0], 0), at[1])
    return {name: 0.0 if at is None else at[1] / last[at[0]] if last[at[0]] else 1.0 for name, at in places.items()}


def patterns_of(name: str) -> tuple[str, ...]:
    """The patterns, without wildcards, that name a tensor: its tower, what stands before its dots, and itself."""
    parts = name.split(".")
    return (tower(name), *(".".join(parts[: i + 1]) for i in range(len(parts))))


def _matched(pattern: str, names: Mapping[str, str]) -> set[str]:
    if pattern in _TOWERS:
        return {name for alias, name in names.items() if tower(alias) == pattern or _below(alias, pattern)}
    return {name for alias, name in names.items() if _below(alias, pattern)}


def _below(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _noted(matched: Mapping[str, set[str]], plan: MergeLayout) -> list[str]:
    """How many tensors each pattern names.

    Raises:
        UserError: one names none.
    """
    notes = []
    named = [pattern for pattern in matched if pattern in plan.entries]
    if named:
        notes.append(f"tensors with settings of their own, by name: {len(named)}")
    for pattern, names in matched.items():
        if pattern in plan.entries:
            continue
        unmerged = sorted(name for name in (*plan.kept, *plan.statistics) if _below(name, pattern))
        if names:
            notes.append(f"part {pattern!r} is {len(names)} of {len(plan.merged)} merged tensors")
        elif unmerged:
            notes.append(f"part {pattern!r} has no effect: its tensors are not merged ({listed(unmerged)})")
        else:
            raise UserError(f"part {pattern!r} matches no tensor; near it are {', '.join(_near(pattern, plan))}")
    return notes


def _near(pattern: str, plan: MergeLayout) -> list[str]:
    parts = list(dict.fromkeys(part for t in plan.merged for part in patterns_of(t.name)))
    middles = list(dict.fromkeys(f"*.{middle}.*" for t in plan.merged for middle in t.name.split(".")[1:-1]))
    plain = _WILDCARDS.sub("", pattern).strip(".")
    close = difflib.get_close_matches(plain, parts, _NEAR // 2, 0.6) if plain else []
    inner = {m.strip("*."): m for m in middles if not m.strip("*.").isdigit()}
    close += [inner[m] for m in difflib.get_close_matches(plain.rpartition(".")[2], inner, _NEAR // 2, 0.6)]
    return close or list(dict.fromkeys(part for t in plan.merged for part in patterns_of(t.name)[:2]))[:_NEAR]


def _ruling(values: Mapping[str, Any], key: str, name: str) -> str:
    """The most specific pattern.

    Raises:
        UserError: two are as specific, and have different values.
    """
    ranked = sorted(values, key=_literal, reverse=True)
    for other in ranked[1:]:
        if _literal(other) == _literal(ranked[0]) and values[other] != values[ranked[0]]:
            raise UserError(
                f"parts {ranked[0]!r} and {other!r} both set {key} of {name!r}, and none is more specific; "
                f"give {name!r}, or a pattern with more characters, the value that it should have"
            )
    return ranked[0]


def _literal(pattern: str) -> int:
    return len(_WILDCARDS.sub("", pattern))
