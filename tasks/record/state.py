"""A temporal state: one git commit, its files read when they are asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from tasks import layout, yaml
from tasks.errors import ReadableError, UserError, first_problem
from tasks.params import Params, parse
from tasks.progress import Progress, silent
from tasks.record import manifest, names
from tasks.record.manifest import Manifest
from tasks.storage.cache import Entry
from tasks.storage.git import show

if TYPE_CHECKING:
    from tasks.record.restoration import Restored
    from tasks.record.verification import Verification


class Contents(dict[str, Entry]):
    """Path → content; what is asked for and not there is a damage of the state, which may be another person's."""

    def __init__(self, state: str, entries: Mapping[str, Entry]):
        super().__init__(entries)
        self._state = state

    def __missing__(self, path: str) -> NoReturn:
        raise UserError(f"{self._state}: DVC's files do not name {path}; `chronomerge doctor` says more")


@dataclass(frozen=True)
class State:
    """One recorded state; its files are read from git when they are asked for."""

    project: Path
    timeline: str
    step: int
    commit: str
    line: int = 1
    """1, and one more after each rollback."""

    @property
    def tag(self) -> str:
        return names.short_tag(self.timeline, self.step, self.line)

    @property
    def name(self) -> str:
        """The state as a person says it, within its timeline: ``3``, or ``3.2`` on the second line."""
        return f"{self.step}" + (f".{self.line}" if self.line > 1 else "")

    @cached_property
    def manifest(self) -> Manifest:
        return manifest.read(show(self.project, self.commit, manifest.FILE), self.tag)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """``metrics.json``; ``heads.json`` is under ``heads`` and ``compatibility.json`` under ``compatibility``, where
        there are such files.

        Raises:
            UserError: one of them is damaged.
        """
        metrics = metrics_of(show(self.project, self.commit, "metrics.json"), self.tag)
        if layout.HEADS in self.entries:
            metrics["heads"] = heads_of(show(self.project, self.commit, layout.HEADS_METRICS), self.tag)
        if layout.COMPATIBILITY in self.entries:
            text = show(self.project, self.commit, layout.COMPATIBILITY_METRICS)
            metrics["compatibility"] = compatibility_of(text, self.tag)
        return metrics

    @cached_property
    def params(self) -> dict[str, Any]:
        """``params.yaml`` as it stands; see `settings`.

        Raises:
            UserError: it is damaged.
        """
        return self._yaml("params.yaml")

    @cached_property
    def settings(self) -> Params:
        """``params.yaml``, validated.

        Raises:
            UserError: it is damaged, or this program does not accept it.
        """
        return parse(show(self.project, self.commit, "params.yaml"), Path(f"params.yaml of {self.tag}"))

    @cached_property
    def entries(self) -> Contents:
        """Path → content of every input and output that DVC keeps, from ``dvc.lock`` and the ``.dvc`` files.

        Raises:
            UserError: they are damaged.
        """
        stored = [out for out in self._outs if out["path"] not in layout.RECORDED]  # metrics are in git
        return Contents(self.tag, {out["path"]: Entry(out["md5"], out["size"], out.get("nfiles")) for out in stored})

    @property
    def expert(self) -> str:
        """The path of its expert, coded or not."""
        return layout.CODED_EXPERT if layout.CODED_EXPERT in self.entries else layout.EXPERT

    @property
    def routed(self) -> bool:
        """Whether it deploys the base, deltas and a router, and no single model."""
        return layout.ROUTED in self.entries

    @property
    def locked(self) -> dict[str, str]:
        """Path → md5 of every input and output, metrics too, as DVC's files name them."""
        return {out["path"]: out["md5"] for out in self._outs}

    @property
    def contradictions(self) -> tuple[str, ...]:
        """Paths for which manifest.json and DVC's own files name different content: somebody has edited one of them."""
        named = {path: entry.md5 for path, entry in self.manifest.contents.items()}
        locked = self.locked
        return tuple(sorted(path for path in {*named, *locked} if named.get(path) != locked.get(path)))

    @cached_property
    def _outs(self) -> list[dict[str, Any]]:
        try:
            outs = [out for stage in self._yaml("dvc.lock")["stages"].values() for out in stage.get("outs", ())]
            for path in layout.INPUTS:
                outs.append({**self._yaml(f"{path}.dvc")["outs"][0], "path": path})
            for out in outs:
                _ENTRY.validate_python({key: out.get(key) for key in ("path", "md5", "size", "nfiles")})
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"{self.tag}: DVC's files are damaged ({reason}); `chronomerge doctor` says more") from None
        return outs

    def _yaml(self, path: str) -> dict[str, Any]:
        try:
            content = yaml.load(show(self.project, self.commit, path))
        except yaml.YAMLError as error:
            content = " ".join(str(error).split())
        if not isinstance(content, dict):
            raise UserError(f"{self.tag}: {path} is damaged ({content!r:.200}); `chronomerge doctor` says more")
        return content

    def restore(self, to: str | os.PathLike[str] | None = None) -> Restored:
        """Bring the state back, bit for bit, into a new or empty folder, by default one beside the project.

        Raises:
            UserError: the folder is not empty, or the state's bytes cannot be had.
        """
        from tasks.record import restoration

        return restoration.restore(self.project, self.timeline, self.tag, Path(to) if to else None)

    def verify(self, progress: Progress = silent) -> Verification:
        """Run the state's nodes again, with its own code, compare every hash, and read its bytes in the cache."""
        from tasks.record import verification

        (verified,) = verification.verify(self.project, [self], progress)
        return verified

    def unreadable(self) -> dict[str, str]:
        """The record files that cannot be read, or lack what is read of them everywhere → why."""
        readers: dict[str, Callable[[], object]] = {
            manifest.FILE: lambda: self.manifest,
            "metrics.json": lambda: self.metrics,
            "params.yaml": lambda: self.params,
            "dvc.lock": lambda: self.entries,
        }
        errors = {}
        for name, read in readers.items():
            try:
                read()
            except Exception as error:  # whatever a damaged file makes a parser raise
                kind = "" if isinstance(error, ReadableError) else f"{type(error).__name__}: "
                errors[name] = f"{kind}{error}".splitlines()[0]
        return errors


class _Out(TypedDict):
    path: str
    md5: str
    size: int
    nfiles: int | None


_ENTRY = TypeAdapter(_Out)


def _with_the_score(recall: dict[str, float]) -> dict[str, float]:
    if "5" not in recall:
        raise ValueError("lacks the recall at 5")
    return recall


def _of_images(went: dict[str, int]) -> dict[str, int]:
    if not sum(went.values()):
        raise ValueError("counts no images")
    return went


_Percent = Annotated[float, Field(ge=0, le=100)]
_Count = Annotated[int, Field(ge=0)]
_Number = Annotated[str, Field(pattern="^[0-9]{1,9}$")]
_Ways = dict[
    Literal["image_to_text", "text_to_image"], Annotated[dict[_Number, _Percent], AfterValidator(_with_the_score)]
]


class _Routing(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    images: dict[str, Annotated[dict[str, _Count], AfterValidator(_of_images)]]
    expert: dict[str, str]
    accuracy: dict[str, _Percent]
    mean_accuracy: _Percent | None
    oracle: dict[str, _Percent]
    oracle_A_KA: _Percent


class _OwnScore(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    set: str
    score: _Percent
    score_of_share: NotRequired[_Percent]


class _Metrics(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    A_KA: _Percent
    A_ZS: _Percent
    geometric_mean: _Percent
    top1: dict[str, _Percent]
    recall: NotRequired[dict[str, Annotated[_Ways, Field(min_length=1)]]]
    top5: NotRequired[dict[str, _Percent]]
    mean_per_class_recall: NotRequired[dict[str, _Percent]]
    share: NotRequired[dict[str, Annotated[float, Field(gt=0, le=1)]]]
    classes: NotRequired[dict[str, _Count]]
    size: NotRequired[dict[str, _Count]]
    expert: NotRequired[_OwnScore]
    routing: NotRequired[_Routing]


_METRICS = TypeAdapter(_Metrics)


def metrics_of(text: str, state: str) -> dict[str, Any]:
    """Read a ``metrics.json``; ``state`` is what messages call its state.

    Raises:
        UserError: it is no JSON, or a number is missing or something else.
    """
    return _checked(_METRICS, text, state, "metrics.json")


class _HeadMetrics(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    features: str
    top1: dict[Annotated[str, Field(pattern="^([0-9]{1,9}|all)$")], dict[str, _Percent]]
    A_KA: dict[str, _Percent]
    A_ZS: dict[str, _Percent]


_HEADS = TypeAdapter(dict[str, _HeadMetrics])


def heads_of(text: str, state: str) -> dict[str, Any]:
    """Read a ``heads.json``; ``state`` is what messages call its state.

    Raises:
        UserError: it is no JSON, or a number is missing or something else.
    """
    return _checked(_HEADS, text, state, layout.HEADS_METRICS)


class _CompatibilityMetrics(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow", populate_by_name=True)  # type: ignore[misc]

    drop: Annotated[float, Field(ge=-100, le=100)] | None
    pairs: int
    compatible: _Percent | None


_COMPATIBILITY = TypeAdapter(_CompatibilityMetrics)
_RECALLS = TypeAdapter(dict[str, dict[_Number, _Percent]])


def compatibility_of(text: str, state: str) -> dict[str, Any]:
    """Read a ``compatibility.json``; ``state`` is what messages call its state.

    Raises:
        UserError: it is no JSON, or a number is missing or something else.
    """
    content = _checked(_COMPATIBILITY, text, state, layout.COMPATIBILITY_METRICS)
    for key in ("recall@1", "recall@5"):
        _checked(_RECALLS, json.dumps(content.get(key)), state, layout.COMPATIBILITY_METRICS)
    return content


def _checked(kind: TypeAdapter[Any], text: str, state: str, file: str) -> dict[str, Any]:
    try:
        kind.validate_json(text, strict=True)
    except ValidationError as error:
        problem = first_problem(error)
        raise UserError(f"{state}: {file} is damaged ({problem}); `chronomerge doctor` says more") from None
    return dict(json.loads(text))
