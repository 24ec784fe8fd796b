"""Source specifications from params.yaml, and the files in `tasks.prepare.sources` that they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks import choice
from tasks.errors import UserError
from tasks.params import SourceSpec
from tasks.prepare.source import Source


def kinds() -> Mapping[str, type[Source]]:
    """Every kind of source there is, by name."""
    return choice.available(Source)


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
    if not isinstance(kind, str) or kind not in kinds():
        raise UserError(f"{where}: unknown source {kind!r} in {spec!r}; known sources: {', '.join(kinds())}")
    source = kinds()[kind]
    try:
        return source.model_validate(source.from_text(what) if isinstance(spec, str) else settings)
    except ValidationError as error:
        problems = "; ".join(_sentence(e, source) for e in error.errors())
    except ValueError as error:
        problems = str(error)
    raise UserError(f"{where}: {spec!r}: {problems}")


def recognised(path: Path, shown: str) -> str:
    """The kind of source that a user's file or folder looks like; ``shown`` is what messages call it.

    Raises:
        UserError: none, or several.
    """
    matching = [kind for kind, source in kinds().items() if source.recognises(path)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        said = " or ".join(f"{kind}:{shown}" for kind in matching)
        raise UserError(f"{shown}: could be read in several ways; say {said}")
    raise UserError(f"{shown}: holds nothing that is read: images, tables (CSV, TSV, JSON lines, Parquet) or tar files")


def written(source: Source) -> SourceSpec:
    """A source as params.yaml has it, in the short form where that says everything."""
    settings = source.model_dump(mode="json", exclude_defaults=True)
    if set(settings) <= {"path", "split"} and "path" in settings:
        split = f"#{settings['split']}" if "split" in settings else ""
        return f"{source.name}:{settings['path']}{split}"
    return {"source": source.name, **settings}


def parse_all(specs: Sequence[SourceSpec], where: str) -> list[Source]:
    """As `parse`, for a list."""
    return [parse(spec, where) for spec in specs]


def _sentence(error: Any, source: type[Source]) -> str:
    key = ".".join(str(part) for part in error["loc"]) or source.name
    if error["type"] == "extra_forbidden":
        return f"unknown key {key}; {source.name} accepts {', '.join(source.model_fields)}"
    if error["type"] == "missing":
        return f"{key} is missing"
    return f"{key}: {error['msg'].removeprefix('Value error, ')}"
