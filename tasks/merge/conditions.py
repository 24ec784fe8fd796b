"""mergekit's parameters: a number, a gradient over the layers (a list of numbers), or filters on tensors' names.

Filters are a list of ``{filter: TEXT, value: …}``: the first whose text is in a tensor's name gives the value, and one
without a filter (or with ``*``) gives it to all that are left.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tasks.errors import UserError
from tasks.merge.technique import gradient_at

Value = TypeVar("Value", bound=Hashable)
_WAYS = "give a number, a list of numbers over the layers, or a list of filters ({filter: mlp, value: 0.5})"


def is_plain(setting: Any) -> bool:
    """Whether it is one value for all tensors."""
    return not isinstance(setting, list | dict)


def require(path: Path, key: str, setting: Any) -> None:
    """Refuse what is no number, gradient or list of filters.

    Raises:
        UserError: names the parameter and what it got.
    """
    if isinstance(setting, list) and setting and all(isinstance(one, dict) for one in setting):
        for one in setting:
            _require_filter(path, key, one)
    elif isinstance(setting, dict):
        _require_filter(path, key, setting)
    else:
        _require_gradient(path, key, setting)


def _require_filter(path: Path, key: str, condition: Mapping[Any, Any]) -> None:
    if "value" not in condition or condition.keys() - {"filter", "value"}:
        raise UserError(f"{path}: parameter {key} has {condition!r:.80}; a filter is {{filter: TEXT, value: …}}")
    if not isinstance(condition.get("filter"), str | None):
        raise UserError(f"{path}: parameter {key} has the filter {condition['filter']!r:.60}; give a part of a name")
    _require_gradient(path, key, condition["value"])


def _require_gradient(path: Path, key: str, value: Any) -> None:
    for one in value if isinstance(value, list) and value else [value]:
        if isinstance(one, bool) or not isinstance(one, int | float):
            raise UserError(f"{path}: parameter {key} is {value!r:.60}; {_WAYS}")
        if not math.isfinite(one):
            raise UserError(f"{path}: parameter {key} is {value!r:.60}; give a finite number")


def value_at(setting: Any, name: str, place: float) -> float | None:
    """A parameter of one tensor, ``place`` its layer from 0 to 1; None where no filter fits."""
    if isinstance(setting, dict):
        return value_at([setting], name, place)
    if isinstance(setting, list) and isinstance(setting[0], dict):
        for condition in setting:
            if condition.get("filter") in (None, "*") or condition["filter"] in name:
                return value_at(condition["value"], name, place)
        return None
    return setting if setting is None or is_plain(setting) else gradient_at(setting, place)


def by_tensor(names: Iterable[str], value: Callable[[str], Value]) -> tuple[Value, dict[str, Value]]:
    """The value that most tensors have, and those of the others."""
    values = {name: value(name) for name in names}
    most = Counter(values.values()).most_common(1)[0][0]
    return most, {name: one for name, one in values.items() if one != most}
