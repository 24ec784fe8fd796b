"""What all sources of a user's own images share: settings, train/test splits, captions, decoding."""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field, field_validator

from tasks.errors import UserError
from tasks.model.datasets import Origin
from tasks.prepare import captured, files, imaging
from tasks.prepare.source import Complain, Context, Example, Outside, Reading, Source, refuse
from tasks.randomness import derive

Split = Literal["train", "test"]
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing", "validation", "valid", "val"),
}
"""What given splits are called; of several that mean ``test``, the first that is there."""

CAPTION_COLUMNS = ("caption", "text", "txt", "title")
LABEL_COLUMNS = ("label", "class", "class_name", "category", "cls")
CHUNK = 256
"""Images decoded at a time."""


@dataclass(frozen=True)
class Row:
    """One sample before decoding."""

    id: str
    group: str
    """What decides on which side of a drawn split it falls: rows of one image stay together."""
    caption: str | None
    class_name: str | None
    load: Callable[[], bytes]
    """Reads the encoded image."""

    @property
    def wordless(self) -> bool:
        return self.caption is None and self.class_name is None


class _Listing(BaseModel):
    """What was fetched, for preparation later: kept beside the raw copies."""

    given: bool
    """Whether the files are one of several given splits."""
    files: list[str]
    """Relative to the raw copy's root."""


class Photographs(Source):
    """Settings of a source of a user's own images; short form ``kind:PATH``, ``kind:PATH#train``, ``kind:PATH#test``.

    Where the data come with splits, ``split`` picks one. Where they don't, it draws one: ``fraction`` of the images,
    chosen by a hash of each one's name and the seed, are the test part, and what is added later moves nothing.
    Without ``split``, all images are used.
    """

    path: str = Field(min_length=1)
    """Relative to the project's root, or absolute."""
    drawn_as: str | None = None
    """The path that a drawn split goes by, where the files have come from there; by default ``path``."""
    split: Split | None = None
    fraction: float = Field(default=0.2, gt=0, lt=1)
    caption: str | None = None
    """Name of the column of captions; by default a usual one."""
    label: str | None = None
    """Name of the column of classes (names, or numbers into ``classes``); by default a usual one."""
    classes: tuple[str, ...] = ()
    template: str = "a photo of a {}."
    """Caption where there's none, and primer prompt; ``{}`` is the class name."""
    licence: str = "unknown"
    attribution: str = ""
    """Both for the data card."""

    @field_validator("template")
    @classmethod
    def _has_place(cls, value: str) -> str:
        if value.count("{}") != 1:
            raise ValueError("must hold {} once, where the class name goes")
        return value

    @field_validator("classes", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @classmethod
    def from_text(cls, what: str) -> dict[str, Any]:
        path, mark, split = what.rpartition("#")
        return {"path": path, "split": split} if mark else {"path": what}

    @property
    def store(self) -> str:
        """Folder name of these files among the raw files of this kind."""
        readable = re.sub(r"[^A-Za-z0-9]+", "-", PurePath(self.path).name).strip("-")
        selected = json.dumps([self.path, *self.only]) if self.only else self.path
        digest = hashlib.sha256(selected.encode()).hexdigest()[:8]
        return f"{readable}-{digest}-{self.split or 'all'}"

    def location(self, project: Path) -> Path:
        """Where the user has the data.

        Raises:
            UserError: there's nothing.
        """
        path = project / self.path
        if not path.exists():
            pointer = captured.pointer(project, self.path)
            wanted = f"; `dvc pull {pointer.relative_to(project)}` brings it" if pointer else ""
            raise UserError(f"{self.kind}: {self.path}: no such file or folder{wanted}")
        return path

    def check(self, project: Path) -> None:
        if not (project / self.path).exists() and captured.pointer(project, self.path):
            return  # it was looked at as it arrived, and comes out of the store when its step runs
        path = self.location(project)
        self.sound(path, self.find(path)[0], refuse)

    @abstractmethod
    def find(self, path: Path) -> tuple[list[Path], bool]:
        """The files of the split at the user's place, sorted, and whether they are split so already.

        Raises:
            UserError: there are none, or there are splits and none was picked.
        """

    def sound(self, path: Path, found: list[Path], complain: Complain) -> list[Path]:  # noqa: ARG002 - most kinds agree
        """Those of the files found at the user's ``path`` that can be read as what they are; the rest is complained of.

        What `only` leaves out need not be among them.
        """
        return found

    @abstractmethod
    def rows(self, home: Path, found: Sequence[Path], scratch: Path) -> tuple[list[Row], bool]:
        """All rows of the raw copies of the files found, and whether a column splits them already.

        ``home`` is the raw copy's root. Loads no images.
        """

    def fetch_more(self, home: Path, found: Sequence[Path], target: Path, outside: Outside) -> None:
        """Copy what the files found refer to."""

    def fetch(self, into: Path, outside: Outside) -> None:
        path = self.location(outside.project)
        found, given = self.find(path)
        found = self.sound(path, found, outside.complain)
        home = path if path.is_dir() else path.parent
        for done, file in enumerate(found, start=1):
            files.copy(file, into / self.store / file.relative_to(home))
            outside.progress(f"copying {self.path}", done, len(found))
        self.fetch_more(home, found, into / self.store, outside)
        listing = _Listing(given=given, files=[file.relative_to(home).as_posix() for file in found])
        (into / f"{self.store}.json").write_text(listing.model_dump_json(indent=1) + "\n")

    def moved(self, raw: Path, folder: Path, path: str) -> Photographs:
        """Move the raw copies that `fetch` left in ``raw`` to ``folder``, which a project has at ``path``.

        Returns the source that reads the very same samples from there, without the files of another split.
        """
        listing = self._listing(raw)
        folder.parent.mkdir(parents=True, exist_ok=True)
        (raw / self.store).rename(folder)
        given = listing.given
        tops = {name.split("/")[0] for name in listing.files}
        if given and len(tops) == 1 and (folder / min(tops)).is_dir():
            path = f"{path}/{min(tops)}"
        drawn_as = (self.drawn_as or self.path) if self.split and not given else None
        return self.model_copy(update={"path": path, "split": None if given else self.split, "drawn_as": drawn_as})

    def _listing(self, raw: Path) -> _Listing:
        path = raw / f"{self.store}.json"
        try:
            return _Listing.model_validate_json(path.read_text())
        except (OSError, ValueError):
            raise UserError(f"{path}: missing or damaged; fetch the arrival again") from None

    def read(self, raw: Path, context: Context) -> Reading:
        listing = self._listing(raw)
        home = (raw / self.store).absolute()  # as the paths that come back out of a table are
        rows, split = self.rows(home, [home / name for name in listing.files], context.scratch)
        names = self.selected((row.class_name for row in rows), f"{self.kind}: {self.path}")
        rows = [row for row in rows if row.class_name in names]
        given = listing.given or split
        if self.split is not None and not given:
            rows = [row for row in rows if drawn(row.group, context.seed, self.fraction) == self.split]
        for row in rows:
            if row.wordless:
                context.complain(f"{row.id}: has neither a caption nor a class; name the column with caption or label")
        rows = [row for row in rows if not row.wordless]
        return Reading(
            count=len(rows),
            classes=tuple(dict.fromkeys(row.class_name for row in rows if row.class_name is not None)),
            prompt=self.template,
            origins=(Origin(self.path, self.licence, self.attribution),),
            examples=self._examples(rows, context),
            texts=tuple((self._caption(row), row.class_name) for row in rows),
        )

    def _caption(self, row: Row) -> str:
        return row.caption or self.template.format(row.class_name)

    def _examples(self, rows: Sequence[Row], context: Context) -> Iterator[Example]:
        def decode(row: Row) -> np.ndarray | str:
            try:
                return imaging.decode(row.load(), context, row.id)
            except OSError as error:
                return f"{row.id}: cannot be read: {error.strerror or error}"
            except UserError as error:
                return str(error)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow decodes outside the interpreter lock
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                for row, image in zip(chunk, pool.map(decode, chunk), strict=True):
                    if isinstance(image, str):
                        context.complain(image)
                    else:
                        yield Example(row.id, image, self._caption(row), row.class_name)


def drawn(name: str, seed: int, fraction: float) -> Split:
    """The side on which an image falls, by a hash of its name and the seed alone."""
    position = derive(seed, "split", name)
    return "test" if position < fraction * 2**64 else "train"


def given_splits(names: Sequence[str]) -> dict[Split, str]:
    """Which of some names (of folders, or in front of file names) are splits; empty unless there are both."""
    by_name = {name.lower(): name for name in names}
    found: dict[Split, str] = {}
    for split, usual in SPLIT_NAMES.items():
        if match := next((by_name[name] for name in usual if name in by_name), None):
            found[split] = match
    return found if len(found) == len(SPLIT_NAMES) else {}


def pick(splits: dict[Split, str], split: Split | None, what: str) -> str | None:
    """The given split that was asked for, None where there are no splits.

    Raises:
        UserError: there are splits and none was picked, so that a test part might be trained on.
    """
    if splits and split is None:
        raise UserError(f"{what}: has the parts {' and '.join(splits.values())}; pick one with #train or #test")
    return splits[split] if splits and split else None


def in_split(found: list[Path], source: Photographs, path: Path) -> tuple[list[Path], bool]:
    """Those of some files whose names start with the name of the split asked for; and whether they are split so."""
    if not path.is_dir():
        return found, False
    starts = [name for names in SPLIT_NAMES.values() for name in names if any(_starts(p, name) for p in found)]
    start = pick(given_splits(starts), source.split, f"{source.kind}: {source.path}")
    return ([p for p in found if _starts(p, start)], True) if start else (found, False)


def _starts(file: Path, word: str) -> bool:
    rest = file.name.lower().removeprefix(word)
    return rest != file.name.lower() and not rest[:1].isalpha()
