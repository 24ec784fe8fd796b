"""YAML: plain values written, and texts of people and other machines read with one kind of error for what is wrong."""

from __future__ import annotations

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

__all__ = ["YAMLError", "dump", "load"]

MOST = 1_000_000
"""Values that a text may have once each alias is what it stands for: nine lines can mean a billion."""
_OF_VALUES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What the library raises beside its own error: for the date 2001-99-99, for ``!!int x``, for 5000 brackets."""


def load(text: str) -> Any:
    """The content of a YAML text, in plain Python values.

    Raises:
        YAMLError: it is no YAML, it is nested too deep, a value is not what its form says, or aliases make much of it.
    """
    try:
        content = YAML(typ="safe").load(text)
        if _count(content, {}) > max(MOST, len(text)):
            raise YAMLError(f"its aliases (*name) stand for more than {MOST} values")
        return content
    except _OF_VALUES as error:
        raise YAMLError(f"a value cannot be read ({error or type(error).__name__})") from None


def _count(value: Any, known: dict[int, int]) -> int:
    """How many values there are in a value, each as often as it is printed; ``known`` has counted ones by identity."""
    if not isinstance(value, dict | list):
        return 1
    if known.setdefault(id(value), 0) == 0:
        known[id(value)] = MOST + 1  # until it is counted: an alias inside of itself has no end
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(one, known) for one in parts)
    return known[id(value)]


def dump(content: Any) -> str:
    """Plain Python values as a YAML text, one key or entry a line."""
    text = io.StringIO()
    writer = YAML()
    writer.default_flow_style = False
    writer.width = 120
    writer.dump(content, text)
    return text.getvalue()
