"""What is to arrive, as a person or a drop says it, and its files brought to one place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tasks import yaml
from tasks.arrive import drops, s3
from tasks.errors import UserError, first_problem
from tasks.layout import is_there
from tasks.model.fitting import OnMismatch
from tasks.params import TAKEN, Limits, Name, SourceSpec
from tasks.prepare.hosted import Hosted
from tasks.prepare.photographs import Photographs
from tasks.prepare.published import PublishedSource
from tasks.prepare.registry import kinds, parse, recognised, written
from tasks.prepare.source import Source
from tasks.progress import Progress
from tasks.text import shortened

LONGEST_NAME = 100
"""Characters of an arrival's name: it becomes a folder, and part of longer names."""
_PART = re.compile(r"#(?:(?:train|test)(?:\[[^\[\]]*\])?|\[[^\[\]]*\])$")
CHECKPOINTS = frozenset((".safetensors", ".pt", ".pth", ".bin", ".ckpt"))


@dataclass(frozen=True)
class Request:
    """Data (each a source as params.yaml writes it, or a path), or an expert; paths may be ``s3://`` addresses."""

    name: str
    data: tuple[SourceSpec, ...] = ()
    expert: str | None = None
    on_mismatch: OnMismatch = "error"
    """As an arrival of params.yaml has it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """For sources that are given as bare paths: what else the source says, and ``source``, its kind."""
    where: str = "--data"
    """Who says so, for messages."""
    drop: str | None = None
    """The folder or address of somebody else's that the files lie in: they are copied by `tasks.arrive.drops`."""
    ignored: tuple[str, ...] = ()
    """Files at the top of a drop that are not data."""

    @property
    def from_others(self) -> bool:
        """Whether the files are somebody else's."""
        return self.drop is not None

    def require_sense(self) -> None:
        """Raises:
        UserError: the name cannot be an arrival's; or it is neither data nor an expert, or both.
        """
        if why := self._wrong_name():
            way_out = "; put name: NAME into its arrival.yaml" if self.from_others else ""
            raise UserError(f"{shortened(self.name, 100)!r} cannot be the name of an arrival: {why}{way_out}")
        if bool(self.data) == (self.expert is not None):
            raise UserError(f"arrival {self.name!r}: give data or an expert, one of the two")

    def _wrong_name(self) -> str:
        """Why the name cannot be an arrival's; empty where it can."""
        try:
            TypeAdapter[str](Name).validate_python(self.name)
        except ValidationError as error:
            return first_problem(error)
        if len(self.name) > LONGEST_NAME:
            return f"more than {LONGEST_NAME} characters"
        return "step 0 and its pool are called so" if self.name in TAKEN else ""


@dataclass(frozen=True)
class LocatedSource:
    """A source, ready to be fetched."""

    source: Source
    given: SourceSpec
    """As params.yaml would have it, were its files to stay where they are."""
    shown: Callable[[str], str] = str
    """Gives a message the address that the user knows, in place of that of a download."""


def located(
    given: SourceSpec,
    request: Request,
    project: Path,
    scratch: Path,
    progress: Progress,
    limits: Limits,
    complain: Callable[[str], None],
) -> LocatedSource:
    """The source that one of a request's data means; what is in S3, or in a drop, is copied into ``scratch``.

    Raises:
        UserError: it is of no kind that is read, could be of several, or is not there.
        UnreachableError: S3 does not give it.
    """
    spec, where = _said(given, request), request.where
    if isinstance(spec, str) or "source" in spec:
        source = parse(spec, where)
        if isinstance(source, PublishedSource) and request.from_others:
            raise UserError(f"{where}: {given}: a drop brings its own files; name what is downloaded yourself")
        if isinstance(source, Hosted):
            source = source.pinned(project)
            return LocatedSource(source, written(source))
        if not isinstance(source, Photographs):
            return LocatedSource(source, spec)
        if isinstance(spec, str):
            spec = {"source": source.name, **source.model_dump(mode="json", exclude_defaults=True)}
    path = spec.get("path")
    if not isinstance(path, str):
        return LocatedSource(parse(spec, where), spec)
    remote = path.startswith(s3.SCHEME)
    elsewhere = remote or request.from_others
    bounds = limits if request.from_others else None
    if remote:
        there = s3.download(path, scratch, progress, bounds, request.ignored)
    elif request.from_others:
        there = drops.copied(project / path, scratch, limits, complain, progress, ignored=request.ignored)
    else:
        there = project / path
    if not is_there(there):
        known = f" (a source is called {', '.join(kinds())})" if ":" in path else ""
        raise UserError(f"{shortened(path, 300)}: no such file or folder{known}")
    if there.is_file() and there.suffix.lower() in CHECKPOINTS:
        raise UserError(f"{path}: is a checkpoint; it arrives with --expert")
    spec = {"source": recognised(there, path) if "source" not in spec else spec["source"], **spec}
    if not elsewhere:
        return LocatedSource(parse(spec, where), spec)
    source = parse({**spec, "path": str(there), "drawn_as": spec.get("drawn_as") or path}, where)
    return LocatedSource(source, spec, lambda text: text.replace(str(there), path))


def _said(given: SourceSpec, request: Request) -> SourceSpec:
    """Short forms as they are, all else as a mapping: it may be written in YAML, and a bare path has ``settings``."""
    if not isinstance(given, str) or given.partition(":")[0] in kinds():
        return given
    if given.startswith("{"):
        try:
            content = yaml.load(given)
        except yaml.YAMLError as error:
            raise UserError(f"{request.where}: {given}: not a mapping: {' '.join(str(error).split())}") from None
        return {str(key): value for key, value in content.items()}
    path, part = without_part(given)
    return {**request.settings, **Photographs.from_text(path + part)}


def without_part(given: str) -> tuple[str, str]:
    """A path, and the part or share behind it, as in ``photos#train[:80%]``."""
    at = _PART.search(given)
    return (given[: at.start()], at[0]) if at else (given, "")
