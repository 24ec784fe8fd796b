"""What is to arrive, as a person or a drop says it, and its files brought to one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.arrive import s3
from tasks.errors import UserError
from tasks.params import TAKEN, Name, SourceSpec
from tasks.prepare.photographs import Photographs
from tasks.prepare.registry import kinds, parse, recognised
from tasks.prepare.source import Source
from tasks.progress import Progress

CHECKPOINTS = frozenset((".safetensors", ".pt", ".pth", ".bin", ".ckpt"))


@dataclass(frozen=True)
class Request:
    """Data (each a source as params.yaml writes it, or a path), or an expert; paths may be ``s3://`` addresses."""

    name: str
    data: tuple[SourceSpec, ...] = ()
    expert: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """For sources that are given as bare paths: what else the source says, and ``source``, its kind."""
    where: str = "--data"
    """Who says so, for messages."""

    def require_sense(self) -> None:
        """Raises:
        UserError: the name cannot be an arrival's; or it is neither data nor an expert, or both.
        """
        try:
            TypeAdapter[str](Name).validate_python(self.name)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"{self.name!r} cannot be the name of an arrival: {reason}") from None
        if self.name in TAKEN:
            raise UserError(f"{self.name!r} cannot be the name of an arrival: step 0 and its pool are called so")
        if bool(self.data) == (self.expert is not None):
            raise UserError(f"arrival {self.name!r}: give data or an expert, one of the two")


@dataclass(frozen=True)
class Found:
    """A source, ready to be fetched."""

    source: Source
    given: SourceSpec
    """As params.yaml would have it, were its files to stay where they are."""
    shown: Callable[[str], str] = str
    """Gives a message the address that the user knows, in place of that of a download."""


def located(given: SourceSpec, request: Request, project: Path, scratch: Path, progress: Progress) -> Found:
    """The source that one of a request's data means; what is in S3 is downloaded into the folder ``scratch``.

    Raises:
        UserError: it is of no kind that is read, could be of several, or is not there.
        UnreachableError: S3 does not give it.
    """
    spec, where = _said(given, request), request.where
    if isinstance(spec, str):
        source = parse(spec, where)
        if not isinstance(source, Photographs):
            return Found(source, spec)
        spec = {"source": source.kind, **source.model_dump(mode="json", exclude_defaults=True)}
    path = spec.get("path")
    if not isinstance(path, str):
        return Found(parse(spec, where), spec)
    remote = path.startswith(s3.SCHEME)
    there = s3.download(path, scratch, progress) if remote else project / path
    if not there.exists():
        known = f" (a source is called {', '.join(kinds())})" if ":" in path else ""
        raise UserError(f"{path}: no such file or folder{known}")
    if there.is_file() and there.suffix.lower() in CHECKPOINTS:
        raise UserError(f"{path}: is a checkpoint; it arrives with --expert")
    spec = {"source": recognised(there, path) if "source" not in spec else spec["source"], **spec}
    if not remote:
        return Found(parse(spec, where), spec)
    source = parse({**spec, "path": str(there), "drawn_as": path}, where)
    return Found(source, spec, lambda text: text.replace(str(there), path))


def _said(given: SourceSpec, request: Request) -> SourceSpec:
    """Short forms as they are, all else as a mapping: it may be written in YAML, and a bare path has ``settings``."""
    if not isinstance(given, str) or given.partition(":")[0] in kinds():
        return given
    if given.startswith("{"):
        try:
            content = YAML(typ="safe").load(given)
        except YAMLError as error:
            raise UserError(f"{request.where}: {given}: not a mapping: {' '.join(str(error).split())}") from None
        return {str(key): value for key, value in content.items()}
    path, _, split = given.rpartition("#") if given.endswith(("#train", "#test")) else (given, "", "")
    return {**request.settings, "path": path, **({"split": split} if split else {})}
