"""What is chosen by name: data sources, merging techniques, training methods, regularizers, stream orderings.

One file each, in a package of the kind; some kinds also take a class in a file of the user's own.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from abc import ABC
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from tasks.errors import UserError
from tasks.params import Named, Settings


class Choice(Settings, ABC):
    """Something that is chosen by name; its fields are its settings."""

    key: ClassVar[str]
    """Where it is chosen, e.g. ``train.method``; messages begin with it."""
    package: ClassVar[str]
    """The package whose modules define the choices there are."""
    from_file: ClassVar[bool] = False
    """Whether a class of the user's own can be chosen, as ``file.py:Class``."""
    name: ClassVar[str]
    source: ClassVar[str]
    """The paper that a method is from."""


Kind = TypeVar("Kind", bound=Choice)


@cache
def available(kind: type[Kind]) -> Mapping[str, type[Kind]]:
    """All choices of a kind that come with the package, by name."""
    home = importlib.import_module(kind.package)
    modules = [importlib.import_module(f"{home.__name__}.{info.name}") for info in pkgutil.iter_modules(home.__path__)]
    known = {choice.name: choice for module in modules for choice in _defined_in(module, kind)}
    return dict(sorted(known.items()))


def find(kind: type[Kind], name: str) -> type[Kind]:
    """A choice by name, or ``file.py:Class`` where the kind allows that.

    Raises:
        UserError: there is none of that name; says which there are.
    """
    if kind.from_file and ":" in name:
        return _of_file(kind, name)
    known = available(kind)
    if name not in known:
        own = ", or file.py:Class for your own" if kind.from_file else ""
        raise UserError(f"{kind.key}: there is no {name!r}; there are {', '.join(known)}{own}")
    return known[name]


def create(kind: type[Kind], chosen: Named) -> Kind:
    """What ``chosen`` names, its settings checked.

    Raises:
        UserError: there is none of that name, or a setting is unknown or has a value it does not accept.
    """
    wanted = find(kind, chosen.name)
    try:
        return wanted.model_validate(chosen.settings)
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        for one in error.errors():
            problem, remedy = _problem(wanted, one)
            problems.setdefault(problem, []).append(remedy)
    told = "; ".join(problem + ", or ".join(remedies) for problem, remedies in problems.items())
    raise UserError(f"{kind.key}: {told}")


def _problem(wanted: type[Choice], error: Any) -> tuple[str, str]:
    """What is wrong, and what would be right: a setting of several types has one error for each."""
    section: type[BaseModel] = wanted
    path = ""
    part: Any = ""
    for part in error["loc"]:
        if part not in section.model_fields:
            break
        path += f".{part}" if path else part
        types = [t for t in get_args(section.model_fields[part].annotation) if inspect.isclass(t)]
        section = next((t for t in types if issubclass(t, BaseModel)), section)
    if error["type"] == "extra_forbidden":
        prefix = f"{path}." if path else ""
        accepted = ", ".join(f"{prefix}{name}" for name in section.model_fields)
        remedy = f"it accepts {accepted}" if accepted else "it has none"
        return f"{wanted.name}: no setting {prefix + str(part)!r}; ", remedy
    if error["type"] == "missing":
        return f"{wanted.name}: {path} is missing", ""
    message = error["msg"].removeprefix("Value error, ")
    if not path:
        return f"{wanted.name}: ", message
    return f"{wanted.name}: {path} got {error['input']!r:.80}; ", f"{message[0].lower()}{message[1:]}"


def _of_file(kind: type[Kind], name: str) -> type[Kind]:
    file, _, wanted = name.rpartition(":")
    path, where = Path(file), f"{kind.key} {name!r}"
    if not path.is_file():
        raise UserError(f"{where}: there is no file {file}; write it as path/to/file.py:Class")
    spec = importlib.util.spec_from_file_location(f"_{kind.__name__.lower()}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{where}: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's own code may raise
        raise UserError(f"{where}: {file} cannot be imported ({type(error).__name__}: {error})") from error
    for choice in _defined_in(module, kind):
        if choice.__name__ == wanted:
            return choice
    raise UserError(f"{where}: {file} defines no {kind.__name__.lower()} {wanted}")


def _defined_in(module: ModuleType, kind: type[Kind]) -> list[type[Kind]]:
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, kind)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
