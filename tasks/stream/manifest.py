"""Manifests of ready streams: which sets there are, where they can be had, and what is known of a right copy.

A manifest is a YAML file in the folder ``streams`` of a project. It has addresses, counts, names and scores, never
data. Another manifest may take the first sets of one (``of`` and ``first``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from tasks import yaml
from tasks.errors import UserError, first_problem
from tasks.params import Base, Name, Settings

FOLDER = Path("streams")
VALIDATION_SHARE, VALIDATION_MOST = 0.1, 5000
"""What task vectors' code holds out of the training samples: a tenth, and 5000 at most."""

_STREAM = re.compile(r"[\w-]{1,100}")
_ADDRESS = re.compile(r"(s3|https?|hf)://")
Role = Literal["adaptation", "retention"]


class Counts(Settings):
    """Samples of a set's parts; None where no source says it."""

    train: int | None = Field(default=None, gt=0)
    test: int | None = Field(default=None, gt=0)


class ReadySet(Settings):
    """One data set of a ready stream."""

    name: Name
    title: str
    role: Role = "adaptation"
    """Whether its training part arrives, or it is only tested on."""
    sources: tuple[str, ...] = ()
    """Sources in the short form without a part, best first: the first one is taken."""
    missing: str | None = None
    """Why it cannot be had automatically, and whom to ask; where there are no sources."""
    counts: Counts = Counts()
    licence: str
    score: float | None = Field(default=None, ge=0, le=100)
    """In percent, of the model that the manifest's ``scored_by`` names, without training: top-1 or mean recall@5."""
    expert: str | None = None
    """The address of an expert that somebody has trained on it."""
    label: str | None = None
    """The column of classes, where there are several."""
    pairs: bool = False
    """Whether it is a set of images and captions, scored by retrieval."""
    templates: tuple[str, ...] = ()
    """Prompts with ``{}`` for the class; several are an ensemble."""
    classes: tuple[str, ...] = ()
    """What classes are called in prompts, by their number; empty where the data say it."""
    classes_count: int | None = Field(default=None, gt=1)
    """How many classes there are, where `classes` does not say it."""

    @field_validator("templates")
    @classmethod
    def _have_places(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for template in value:
            if template.count("{}") != 1:
                raise ValueError(f"a prompt holds {{}} once, got {template!r:.80}")
        return value

    @model_validator(mode="after")
    def _can_be_had_or_says_why(self) -> ReadySet:
        if not self.sources and not self.missing:
            raise ValueError("needs sources, or missing: why there are none and whom to ask")
        return self

    @property
    def number_of_classes(self) -> int | None:
        """None where no source says it."""
        return len(self.classes) or self.classes_count

    def counted(self, *, trained: bool) -> list[int | None]:
        """How many samples its test part has, and its training part if it is trained on; None where no source says."""
        return [self.counts.test, *([self.counts.train] if trained else [])]

    @property
    def validation(self) -> int | None:
        """Training samples that task vectors' code holds out; None where the training samples are not counted."""
        if self.counts.train is None:
            return None
        return min(int(VALIDATION_SHARE * self.counts.train), VALIDATION_MOST)


class StreamManifest(Settings):
    """A ready stream."""

    stream: Name
    about: str
    base: Base
    scored_by: str | None = None
    """The open_clip model and pretraining that scores are of: ``MODEL, TAG``; None where no score is known."""
    train: dict[str, Any]
    """The sections ``train``, ``time`` and ``grid`` of params.yaml."""
    time: dict[str, Any]
    grid: dict[str, Any]
    steps_of: dict[int, int] = Field(default_factory=dict)
    """Training steps of a time step by the number of time steps, where the benchmark's budget says it."""
    folder: str
    """The source of a set in a folder of the user's; ``{data}`` is the folder and ``{name}`` the set."""
    archives: str | None = None
    """The source of a set as its archive, on a hub or in a folder, where there is such a kind; written as `folder`."""
    sets: tuple[ReadySet, ...] = Field(min_length=1)

    @field_validator("scored_by")
    @classmethod
    def _a_model_with_weights(cls, value: str | None) -> str | None:
        model, comma, tag = (value or "a, b").partition(", ")
        if not model or not comma or tag.strip() in ("", "train"):
            raise ValueError(f"is MODEL, TAG: a model and its weights, such as ViT-B-32, openai; got {value!r:.80}")
        return value

    @field_validator("time", "grid")
    @classmethod
    def _no_code(cls, value: dict[str, Any]) -> dict[str, Any]:
        """A technique of one's own is code: it stands in one's own params.yaml."""
        for text in _texts(value):
            if ":" in text:
                raise ValueError(f"names only what comes with chronomerge, got {text!r:.80}")
        return value

    @model_validator(mode="after")
    def _unique(self) -> StreamManifest:
        names = [one.name for one in self.sets]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two sets are named {repeated[0]!r}")
        return self

    def of_role(self, role: Role) -> list[ReadySet]:
        """The sets of a role, in the manifest's order."""
        return [one for one in self.sets if one.role == role]


def _texts(value: Any) -> Iterator[str]:
    """Every text in plain values, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
            yield from _texts(part)


def names(project: Path) -> list[str]:
    """The ready streams of a project."""
    return sorted(path.stem for path in (project / FOLDER).glob("*.yaml"))


def read(name: str, project: Path) -> StreamManifest:
    """A manifest of the project's, or one at a path.

    Raises:
        UserError: there is none, or it is not one; names the file and the key.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else project / FOLDER / f"{name}.yaml"
    content = _content(path, name, project)
    if "of" in content:
        of, first = content.pop("of"), content.pop("first", None)
        if not isinstance(of, str) or not _STREAM.fullmatch(of):
            raise UserError(f"{path}: of: expected the name of a stream beside it, got {of!r:.80}")
        whole = _content(path.parent / f"{of}.yaml", of, project)
        sets = whole.get("sets")
        if not isinstance(sets, list) or not all(isinstance(one, dict) for one in sets):
            raise UserError(f"{path.parent / of}.yaml: sets: expected a list of sets, each with keys such as name")
        if type(first) is not int or not 0 < first <= len(sets):
            raise UserError(f"{path}: first: expected a number of sets of {of}, got {first!r:.80}")
        arriving = [one for one in sets if one.get("role", "adaptation") == "adaptation"]
        others = [one for one in sets if one not in arriving]
        content = {**whole, **content, "sets": [*arriving[:first], *others]}
    try:
        manifest = StreamManifest.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}") from None
    _require_inside(manifest, path, project)
    return manifest


def _require_inside(manifest: StreamManifest, path: Path, project: Path) -> None:
    """Refuse files of this machine: they would be read, and go into states and their store, as a stranger says.

    Raises:
        UserError: an address is a path that leads out of the project.
    """
    sets = [text for one in manifest.sets for text in (*one.sources, *filter(None, [one.expert]))]
    for text in (
        *_texts([manifest.base.model_dump(), manifest.train, manifest.time, manifest.grid]),
        manifest.folder,
        *filter(None, [manifest.archives]),
        *sets,
    ):
        if _ADDRESS.match(text):
            continue
        for place in (text, text.partition(":")[2]):  # as a path, and as KIND:PATH
            whole = os.path.realpath(project / place.replace("\0", "_"))
            if not Path(whole).is_relative_to(os.path.realpath(project)):
                raise UserError(
                    f"{path}: {text!r:.200} leads out of the project, and a manifest names none of your folders; give "
                    "yours with --data FOLDER, or write it into params.yaml yourself"
                )


def _content(path: Path, name: str, project: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(names(project)) or f"none in {FOLDER}/"
        raise UserError(f"{name}: no such stream; there are {known}, or name a YAML file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a readable YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys such as stream, base and sets at the top level")
    content.pop("where", None)  # texts that entries refer to
    return content
