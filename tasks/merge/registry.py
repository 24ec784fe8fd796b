"""Techniques by name: every module of `tasks.merge.techniques`, or a class in a file of the user's own."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from tasks.errors import UserError
from tasks.merge.technique import Technique


@cache
def available() -> Mapping[str, type[Technique]]:
    """All techniques that come with the package, by name."""
    package = importlib.import_module("tasks.merge.techniques")
    found: dict[str, type[Technique]] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda i: i.name):
        for technique in _defined_in(importlib.import_module(f"{package.__name__}.{info.name}")):
            found[technique.name] = technique
    return dict(sorted(found.items()))


def find(name: str) -> type[Technique]:
    """A technique by name, or ``file.py:Class`` for one of the user's own.

    Raises:
        UserError: there is none of that name; says which there are.
    """
    if ":" in name:
        return _from_file(name)
    try:
        return available()[name]
    except KeyError:
        raise UserError(
            f"unknown technique {name!r}; there are {', '.join(available())}, or file.py:Class for your own"
        ) from None


def create(name: str, settings: Mapping[str, Any]) -> Technique:
    """A technique with its settings, checked.

    Raises:
        UserError: unknown technique or setting, or a value that a setting does not accept; names key and value.
    """
    technique = find(name)
    try:
        return technique.model_validate(dict(settings))
    except ValidationError as error:
        raise UserError("; ".join(_sentence(technique, e) for e in error.errors())) from None


def _sentence(technique: type[Technique], error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{technique.name} has no setting {key!r}; it accepts {', '.join(technique.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    if not key:
        return f"{technique.name}: {message}"
    return f"{technique.name}: {key} got {error['input']!r:.80}; {message[0].lower()}{message[1:]}"


def _from_file(name: str) -> type[Technique]:
    file, _, wanted = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"technique {name!r}: there is no file {file}; write it as path/to/file.py:Class")
    spec = importlib.util.spec_from_file_location(f"_technique_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"technique {name!r}: {file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for technique in _defined_in(module):
        if technique.__name__ == wanted:
            return technique
    raise UserError(f"technique {name!r}: {file} defines no technique {wanted}")


def _defined_in(module: ModuleType) -> list[type[Technique]]:
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Technique)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
