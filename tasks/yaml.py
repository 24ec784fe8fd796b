"""Reading YAML of people and of other machines: whatever is wrong with a text is one kind of error."""

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

__all__ = ["YAMLError", "load"]

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
