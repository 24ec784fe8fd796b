"""YAML: plain values written, and texts of people and other machines read with one kind of error for what is wrong."""

from __future__ import annotations

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

__all__ = ["YAMLError", "dump", "load"]

_OF_VALUES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What the library raises beside its own error: for the date 2001-99-99, for ``!!int x``, for 5000 brackets."""


def load(text: str) -> Any:
    """The content of a YAML text, in plain Python values.

    Raises:
        YAMLError: it is no YAML, it is nested too deep, or a value is not what its form says.
    """
    try:
        return YAML(typ="safe").load(text)
    except _OF_VALUES as error:
        raise YAMLError(f"a value cannot be read ({error or type(error).__name__})") from None


def dump(content: Any) -> str:
    """Plain Python values as a YAML text, one key or entry a line."""
    text = io.StringIO()
    writer = YAML()
    writer.default_flow_style = False
    writer.width = 120
    writer.dump(content, text)
    return text.getvalue()
