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
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

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
        problems: dict[str, list[str]] = {}
        for one in error.errors():
            problem, wanted = _problem(technique, one)
            problems.setdefault(problem, []).append(wanted)
        raise UserError("; ".join(problem + ", or ".join(wanted) for problem, wanted in problems.items())) from None


def _problem(technique: type[Technique], error: Any) -> tuple[str, str]:
    """What is wrong, and what would be right: a setting of several types has one error for each."""
    section: type[BaseModel] = technique
    path = ""
    for part in error["loc"]:
        if part not in section.model_fields:
            break
        path += f".{part}" if path else part
        types = [t for t in get_args(section.model_fields[part].annotation) if inspect.isclass(t)]
        section = next((t for t in types if issubclass(t, BaseModel)), section)
    if error["type"] == "extra_forbidden":
        prefix = f"{path}." if path else ""
        accepted = ", ".join(f"{prefix}{name}" for name in section.model_fields)
        return f"{technique.name} has no setting {prefix + str(part)!r}; it accepts ", accepted
    message = error["msg"].removeprefix("Value error, ")
    if not path:
        return f"{technique.name}: ", message
    return f"{technique.name}: {path} got {error['input']!r:.80}; ", f"{message[0].lower()}{message[1:]}"


def _from_file(name: str) -> type[Technique]:
    file, _, wanted = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"technique {name!r}: there is no file {file}; write it as path/to/file.py:Class")
    spec = importlib.util.spec_from_file_location(f"_technique_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"technique {name!r}: {file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's own code may raise
        raise UserError(f"technique {name!r}: {file} cannot be imported ({type(error).__name__}: {error})") from error
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
