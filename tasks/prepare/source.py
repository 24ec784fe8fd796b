"""What a data source is. One file in `tasks.prepare.sources` defines one, and nothing else needs to know of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import field_validator

from tasks.choice import Choice
from tasks.errors import UserError
from tasks.model.datasets import Origin
from tasks.model.jpeg import Jpeg
from tasks.params import Limits
from tasks.progress import Progress

Complain = Callable[[str], None]
"""Hears what is wrong with a part of the data; where it returns, that part is left out and the rest is looked at."""


Note = Callable[[str], None]
"""Hears what a person should know of the data, and need not mend: what is left out, or drawn."""


def refuse(problem: str) -> None:
    """How to complain where data must be whole.

    Raises:
        UserError: always.
    """
    raise UserError(problem)


def unheard(note: str) -> None:
    """How to note where nobody listens."""


@dataclass(frozen=True)
class Outside:
    """What fetching needs of the world outside."""

    project: Path
    """Where a user's relative paths start."""
    cache: Path
    """A folder that keeps downloads between calls."""
    seed: int
    progress: Progress
    complain: Complain = refuse
    note: Note = unheard
    limits: Limits = field(default_factory=Limits)
    inside: bool = False
    """Whether tables may name images below their own folder alone: the data come from somebody else."""


@dataclass(frozen=True)
class Context:
    """What preparation needs besides the raw files and a source's own settings."""

    seed: int
    image_size: int
    """Height and width of the images, in pixels."""
    interpolation: str
    """How photographs are resized: ``bicubic`` or ``bilinear``, as in the model's preprocess.json."""
    squash: bool
    """Whether photographs are squeezed into the square; else the shorter side is resized and the centre cut out."""
    scratch: Path
    """A folder for temporary files, removed afterwards."""
    memo: dict[str, Any] = field(default_factory=dict, repr=False)
    """What sources keep between readings of one node call, by a key that starts with their kind."""
    complain: Complain = field(default=refuse, repr=False)
    note: Note = field(default=unheard, repr=False)
    limits: Limits = field(default_factory=Limits, repr=False)
    jpeg: Jpeg | None = None
    """How images are stored as JPEG files; None where they are stored as raw pixels."""

    @property
    def originals(self) -> bool:
        """Whether examples have their ``original``."""
        return self.jpeg is not None and self.jpeg.size == "original"


@dataclass(frozen=True)
class Example:
    """One decoded sample; ``image`` is uint8 RGB of shape (image_size, image_size, 3)."""

    id: str
    image: np.ndarray = field(repr=False)
    caption: str
    class_name: str | None = None
    """None where the source has captions only."""
    original: bytes | None = field(default=None, repr=False)
    """The image at its original size as a JPEG file, where the context asks for `originals` and the source has them."""


@dataclass(frozen=True)
class Reading:
    """What a source gives: how much is known at once, the decoded examples one by one."""

    count: int
    classes: tuple[str, ...]
    """Names of the classes that occur, without repeats."""
    prompt: str
    """Primer prompt of the form of the captions; ``{}`` is the class name."""
    origins: tuple[Origin, ...]
    examples: Iterator[Example] = field(repr=False)
    texts: tuple[tuple[str, str | None], ...] = field(repr=False)
    """Caption and class of every example, known without decoding it."""
    templates: tuple[str, ...] = ()
    """The prompt ensemble that the data come with, if any; each of the form of ``prompt``."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What classes are called in prompts, where that is not what they are told apart by."""


class Source(Choice):
    """Settings of one source, and how it is fetched and read.

    Its ``name`` is its kind: the word before the colon in ``kind:what``.
    """

    key: ClassVar[str] = "source"
    package: ClassVar[str] = "tasks.prepare.sources"

    only: tuple[str, ...] = ()
    """The classes that are read, by name; by default all."""

    @field_validator("only", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    def selected(self, there: Iterable[str | None], what: str) -> frozenset[str | None]:
        """Which of the classes that are ``there`` are read.

        Raises:
            UserError: `only` names one that is not; ``what`` is the source as messages call it.
        """
        names = frozenset(there)
        if missing := [name for name in self.only if name not in names]:
            raise UserError(f"{what}: only names the class {missing[0]!r}, and there is none of that name")
        return frozenset(self.only) if self.only else names

    @classmethod
    @abstractmethod
    def from_text(cls, what: str) -> dict[str, Any]:
        """The settings that the short form ``kind:what`` stands for, not validated yet.

        Raises:
            ValueError: one sentence on what is wrong with it.
        """

    @classmethod
    def recognises(cls, path: Path) -> bool:  # noqa: ARG003 - not all kinds have files of a user's
        """Whether a user's file or folder, of which nothing else is known, looks like one that this kind reads."""
        return False

    def check(self, project: Path) -> None:
        """Look, without reading data, whether this source can be fetched at all.

        Raises:
            UserError: it can't, for instance because a folder is missing.
        """

    def at_most(self, project: Path) -> int | None:  # noqa: ARG002 - most kinds must read their data for it
        """The largest number of samples that this source can give, where a look at the file system tells; else None.

        Raises:
            UserError: as `check`.
        """
        return None

    @abstractmethod
    def fetch(self, into: Path, outside: Outside) -> None:
        """Put the raw files into ``into``, which all sources of one kind share; the same bytes every time.

        Raises:
            UserError: a file is missing or can't be had, with the way out.
        """

    @abstractmethod
    def read(self, raw: Path, context: Context) -> Reading:
        """Decode what `fetch` left in ``raw``: a pure function of those files, the settings and the context.

        Raises:
            UserError: a file can't be decoded (also while iterating over the examples), or nothing is selected.
        """
