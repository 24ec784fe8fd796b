"""What is chosen by name: training methods, regularizers, stream orderings. One file each, in a package of the kind."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError

from tasks.errors import UserError
from tasks.params import Named, Settings


class Choice(Settings, ABC):
    """Something that is chosen by name; its fields are its settings."""

    key: ClassVar[str]
    """Where it is chosen, e.g. ``train.method``; messages begin with it."""
    package: ClassVar[str]
    """The package whose modules define the choices there are."""
    name: ClassVar[str]
    source: ClassVar[str]
    """The paper that it is from."""


Kind = TypeVar("Kind", bound=Choice)


@cache
def available(kind: type[Kind]) -> Mapping[str, type[Kind]]:
    """All choices of a kind, by name."""
    home = importlib.import_module(kind.package)
    modules = [importlib.import_module(f"{home.__name__}.{info.name}") for info in pkgutil.iter_modules(home.__path__)]
    found = {
        value.name: value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, kind) and not inspect.isabstract(value)
    }
    return dict(sorted(found.items()))


def create(kind: type[Kind], chosen: Named) -> Kind:
    """What ``chosen`` names, its settings checked.

    Raises:
        UserError: there is none of that name, or a setting is unknown or has a value it does not accept.
    """
    known = available(kind)
    if chosen.name not in known:
        raise UserError(f"{kind.key}: there is no {chosen.name!r}; there are {', '.join(known)}")
    wanted = known[chosen.name]
    try:
        return wanted.model_validate(chosen.settings)
    except ValidationError as error:
        problems = "; ".join(_sentence(wanted, e) for e in error.errors())
    raise UserError(f"{kind.key}: {chosen.name}: {problems}")


def _sentence(wanted: type[Choice], error: Any) -> str:
    setting = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        settings = ", ".join(wanted.model_fields)
        return f"no setting {setting!r}; " + (f"it accepts {settings}" if settings else "it has none")
    if error["type"] == "missing":
        return f"{setting} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{setting} got {error['input']!r:.80}; {message[0].lower()}{message[1:]}"
