"""Source specifications from params.yaml, and the files in `tasks.prepare.sources` that they name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic import ValidationError

from tasks.errors import UserError
from tasks.params import SourceSpec
from tasks.prepare import sources
from tasks.prepare.source import Source


@cache
def kinds() -> dict[str, type[Source]]:
    """Every kind of source there is: one per module of `tasks.prepare.sources`."""
    found: dict[str, type[Source]] = {}
    for module in pkgutil.iter_modules(sources.__path__):
        members = vars(importlib.import_module(f"{sources.__name__}.{module.name}")).values()
        for member in members:
            if isinstance(member, type) and issubclass(member, Source) and "kind" in vars(member):
                found[member.kind] = member
    return found


def parse(spec: SourceSpec, where: str) -> Source:
    """A source from ``kind:what`` or ``{source: kind, ...}``; ``where`` is its key in params.yaml.

    Raises:
        UserError: an unknown kind, an unknown setting, or a value that it does not accept.
    """
    if isinstance(spec, str):
        kind, colon, what = spec.partition(":")
        if not colon or not what:
            raise UserError(f"{where}: {spec!r} is not of the form kind:what, e.g. icons:food or images:photos")
        settings: dict[str, Any] = {}
    else:
        settings = dict(spec)
        kind = settings.pop("source", None)
        if kind is None:
            raise UserError(f"{where}: {spec!r} lacks the key source; known sources: {', '.join(kinds())}")
    if kind not in kinds():
        raise UserError(f"{where}: unknown source {kind!r} in {spec!r}; known sources: {', '.join(kinds())}")
    source = kinds()[kind]
    try:
        return source.model_validate(source.from_text(what) if isinstance(spec, str) else settings)
    except ValidationError as error:
        problems = "; ".join(_sentence(e, source) for e in error.errors())
    except ValueError as error:
        problems = str(error)
    raise UserError(f"{where}: {spec!r}: {problems}")


def parse_all(specs: Sequence[SourceSpec], where: str) -> list[Source]:
    """As `parse`, for a list."""
    return [parse(spec, where) for spec in specs]


def _sentence(error: Any, source: type[Source]) -> str:
    key = ".".join(str(part) for part in error["loc"]) or source.kind
    if error["type"] == "extra_forbidden":
        return f"unknown key {key}; {source.kind} accepts {', '.join(source.model_fields)}"
    if error["type"] == "missing":
        return f"{key} is missing"
    return f"{key}: {error['msg'].removeprefix('Value error, ')}"
