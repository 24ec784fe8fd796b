"""What all sources of images, captions and classes share: settings, shares, captions, decoding."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, Field, field_validator

from tasks.errors import UserError
from tasks.model.datasets import Origin
from tasks.prepare import imaging, tables
from tasks.prepare.source import Context, Example, Reading, Source
from tasks.prepare.splits import Share
from tasks.text import shortened
from tasks.units import counted

_LIKE_MISSING = frozenset(("nan", "none", "null", "nil", "na", "n/a", "#n/a", "<na>"))
"""What other tools write for a missing value, in lower case."""
_LIST = re.compile(r"\[\s*(?:'.*'|\".*\")\s*\]")
"""A list of texts as Python and JSON write it."""
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

    def with_captions(self, captions: Sequence[str]) -> list[Row]:
        """A sample for each caption, numbered where there are several; without captions, the sample as it is."""
        if len(captions) < 2:
            return [replace(self, caption=captions[0] if captions else None)]
        return [replace(self, id=f"{self.id}#{n}", caption=text) for n, text in enumerate(captions, start=1)]


@dataclass(frozen=True)
class Rows:
    """The samples of a source, before decoding."""

    rows: list[Row]
    given: bool = False
    """Whether a column has split them already."""
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    """All classes that the data name, in their order, those without samples too; by default those that occur."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What classes are called in prompts and captions, where that is not what they are told apart by."""
    prompts: tuple[str, ...] = ()
    """The prompts that the data come with; of one that the source's settings say, none."""


class Listing(BaseModel):
    """What was fetched, for preparation later: kept beside the raw copies."""

    given: bool
    """Whether the files are one of several given splits."""
    files: list[str]
    """Relative to the raw copy's root."""


class ImageSource(Source):
    """Settings of a source of images with captions or classes; short form ``kind:PATH``, ``kind:PATH#PART``.

    ``share`` draws from the part that is read, by a hash of each sample's name and the seed: ``kind:PATH#train[:80%]``.
    """

    part: ClassVar[str] = "the column"
    """What in a sample holds its caption or its class."""

    path: str = Field(min_length=1)
    """Relative to the project's root, or absolute; an address, where a kind takes one."""
    share: str | None = None
    """A drawn share: ``[:80%]``, ``[80%:]``, ``[20%:80%]``."""
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

    @field_validator("share")
    @classmethod
    def _readable_share(cls, value: str | None) -> str | None:
        return None if value is None else str(Share.parse(value))

    @field_validator("classes", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @classmethod
    def from_text(cls, what: str) -> dict[str, Any]:
        path, mark, part = what.rpartition("#")
        if not mark:
            return {"path": what}
        split, bracket, share = part.partition("[")
        settings = {"path": path, "split": split} if split or not bracket else {"path": path}
        return settings | ({"share": bracket + share} if bracket else {})

    @property
    @abstractmethod
    def store(self) -> str:
        """Folder name of these files among the raw files of this kind."""

    @abstractmethod
    def fetched(self, raw: Path) -> Listing:
        """What `fetch` left in ``raw``.

        Raises:
            UserError: it is missing or damaged.
        """

    @abstractmethod
    def rows(self, home: Path, files: Sequence[Path], context: Context) -> Rows:
        """All rows of the raw copies of the given files.

        ``home`` is the raw copy's root. Loads no images.
        """

    def read(self, raw: Path, context: Context) -> Reading:
        listed = self.fetched(raw)
        what = f"{self.name}: {self.path}"
        home = (raw / self.store).absolute()  # as the paths that come back out of a table are
        table = self.rows(home, [home / name for name in listed.files], context)
        for note in table.notes:
            context.note(f"{what}: {note}")
        names = self.selected((*table.classes, *(row.class_name for row in table.rows)), what)
        for sentence in (
            *_alike(name for name in names if name is not None),
            *_read_as_written([row.class_name for row in table.rows], [row.caption for row in table.rows]),
        ):
            context.note(f"{what}: {sentence}")
        rows = [row for row in table.rows if row.class_name in names]
        rows = self._drawn(rows, context, given=listed.given or table.given, what=what)
        for row in rows:
            if row.wordless:
                context.complain(f"{row.id}: has neither a caption nor a class; name {self.part} with caption or label")
            elif row.caption and len(row.caption) > context.limits.cell_characters:
                context.complain(f"{row.id}: its caption has more than {context.limits.cell_characters} characters")
        rows = [row for row in rows if not row.wordless]
        prompt = table.prompts[0] if table.prompts and "template" not in self.model_fields_set else self.template
        there = (*table.classes, *(row.class_name for row in rows if row.class_name is not None))
        spoken = [self._caption(row, prompt, table.names) for row in rows]
        return Reading(
            count=len(rows),
            classes=tuple(dict.fromkeys(name for name in there if name in names)),
            prompt=prompt,
            origins=(self.origin(raw),),
            examples=self._examples(rows, spoken, context),
            texts=tuple(zip(spoken, (row.class_name for row in rows), strict=True)),
            templates=table.prompts if len(table.prompts) > 1 and prompt == table.prompts[0] else (),
            names=table.names,
        )

    def origin(self, raw: Path) -> Origin:  # noqa: ARG002 - raw files may say more
        """Where the data come from, for the data card."""
        return Origin(self.path, self.licence, self.attribution)

    def _drawn(self, rows: list[Row], context: Context, *, given: bool, what: str) -> list[Row]:
        """The rows of the share that was asked for, if any."""
        if self.share is None:
            return rows
        share, asked = Share.parse(self.share), f"{self.share} of {'the part' if given else 'all of it'}"
        chosen = [row for row in rows if share.holds(row.group, context.seed)]
        context.note(f"{what}: {asked}: {len(chosen)} of {len(rows)} samples")
        return chosen

    def _caption(self, row: Row, prompt: str, names: Mapping[str, str]) -> str:
        name = row.class_name or ""
        return row.caption or prompt.replace("{}", names.get(name, name))

    def _examples(self, rows: Sequence[Row], captions: Sequence[str], context: Context) -> Iterator[Example]:
        def decode(row: Row) -> tuple[np.ndarray, bytes | None] | str:
            try:
                return imaging.decode_with_original(row.load(), context, row.id)
            except OSError as error:
                return f"{row.id}: cannot be read: {error.strerror or error}"
            except UserError as error:
                return str(error)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow decodes outside the interpreter lock
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                spoken = captions[start : start + CHUNK]
                for row, caption, image in zip(chunk, spoken, pool.map(decode, chunk), strict=True):
                    if isinstance(image, str):
                        context.complain(image)
                    else:
                        yield Example(row.id, image[0], caption, row.class_name, image[1])


def _alike(names: Iterable[str]) -> list[str]:
    """A sentence on classes that are probably one, written in two ways; none where there are none."""
    written: dict[str, list[str]] = {}
    for name in sorted(names):
        written.setdefault(re.sub(r"[\s_-]+", " ", name.strip().casefold()), []).append(name)
    pairs = [" and ".join(map(repr, several)) for several in written.values() if len(several) > 1]
    if not pairs:
        return []
    shown = "; ".join(pairs[:3]) + f" and {len(pairs) - 3} more" * (len(pairs) > 3)
    return [f"classes whose names differ by case, spaces or dashes alone are classes of their own: {shown}"]


def _read_as_written(classes: Sequence[str | None], captions: Sequence[str | None]) -> list[str]:
    """Sentences on words that other tools take for numbers or missing values, and that are read as names here."""
    said = []
    names = Counter(name for name in classes if name is not None)
    numbers = sorted(name for name in names if tables.NUMBER.fullmatch(name))
    if 0 < len(numbers) < len(names):
        shown = shortened(", ".join(map(repr, numbers)), 80)
        count = sum(names[number] for number in numbers)
        said.append(f"numbers beside names are names of classes: {shown} ({counted(count, 'sample')})")
    texts = Counter(caption for caption in captions if caption)
    if lists := sorted(text for text in texts if _LIST.fullmatch(text)):
        count = sum(texts[text] for text in lists)
        said.append(
            f"a list in a cell of text is one caption: {shortened(repr(lists[0]), 80)} ({counted(count, 'sample')}); "
            "for several captions, write a row for each, or JSON lines or Parquet with a list"
        )
    for what, occurrences in (("classes", names), ("captions", texts)):
        words = sorted(word for word in occurrences if word.casefold() in _LIKE_MISSING)
        if words:
            shown = shortened(", ".join(map(repr, words)), 80)
            count = sum(occurrences[word] for word in words)
            said.append(
                f"read as {what}, as written: {shown} ({counted(count, 'sample')}); missing is an empty cell or a null"
            )
    return said
