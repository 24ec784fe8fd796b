"""Tables: a file's columns, which of them is which by its name, and cells as captions and class names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tasks.errors import UserError
from tasks.prepare import delimited, encodings, hugging
from tasks.text import one_line

IMAGE = ("image", "img", "path", "file_name", "filename", "filepath", "image_path", "image_name")
CAPTION = ("caption", "captions", "text", "txt", "title", "comment")
LABEL = ("label", "class", "class_name", "category", "cls")
"""The usual names, the first that is there."""

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""Extensions of table files, in lower case, and their formats."""

NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
"""A number as people and programs write it."""


class Table(Protocol):
    """A table that is read by column: a `TextTable`, or a Hugging Face ``Dataset``."""

    @property
    def column_names(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, name: str) -> Any: ...


def load(files: Sequence[Path], scratch: Path, what: str, longest: int, *, quoted: bool | None = None) -> Table:
    """Read files of one format as one table; a column of encoded images stays encoded.

    ``longest`` is the number of characters of the longest cell; ``quoted`` as in `delimited.read`.

    Raises:
        UserError: a file is missing, damaged, of another format, or unpacks to far more than it has bytes; names
            ``what``.
    """
    form = FORMATS[files[0].suffix.lower()]
    if form in ("csv", "tsv"):
        return delimited.joined([delimited.read(file, what, longest, quoted=quoted) for file in files], what)
    if form == "json":
        for file in files:
            encodings.require_text(file, f"{_named(file, what)}: cannot be read as json")
        return hugging.load_json(files, scratch, what)
    from tasks.prepare import parquet

    with parquet.opened(files[0], _named(files[0], what)) as table:
        schema = table.schema_arrow
    batches = (batch for file in files for batch in parquet.batches(file, _named(file, what)))
    return hugging.converted(batches, schema, scratch, what)


def at_most(file: Path, what: str) -> int | None:
    """The largest number of rows that a table file can have, where lines or a footer tell it; else None.

    Raises:
        UserError: a Parquet file is damaged.
    """
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return int(pyarrow.parquet.read_metadata(file).num_rows)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{what}: {file.name} is no readable Parquet file ({one_line(str(error))})") from None
    with file.open("rb") as opened:
        if suffix == ".json" or opened.read(100).lstrip().startswith(b"["):  # its lines are no rows
            return None
        opened.seek(0)
        ends, last = {b"\n": 0, b"\r": 0}, b"\n"  # old programs end lines with the second alone
        while block := opened.read(1 << 20):
            last = block[-1:]
            for end in ends:
                ends[end] += block.count(end)
    lines = max(ends.values()) + (last not in ends)
    return lines if suffix == ".jsonl" else max(lines - 1, 0)  # the header


def notes(table: Table) -> tuple[str, ...]:
    """What a person should know of how a table was read."""
    said: tuple[str, ...] = getattr(table, "notes", ())
    return said


def find(table: Table, wanted: str | None, usual: Sequence[str], what: str) -> str | None:
    """The column that was asked for, else the first usual one that is there, else None.

    A column of that very name is preferred; else case, and spaces for underscores, do not matter.

    Raises:
        UserError: the one asked for is not there, or several names are alike.
    """
    names = table.column_names
    candidates = [wanted] if wanted is not None else usual
    for name in candidates:
        if name in names:
            return name
    for name in candidates:
        alike = [one for one in names if _plain(one) == _plain(name)]
        if len(alike) > 1:
            raise UserError(f"{what}: the columns {' and '.join(map(repr, alike))} have the same name; rename one")
        if alike:
            return alike[0]
    if wanted is not None:
        raise UserError(f"{what}: no column {wanted!r}; there are {', '.join(names)}")
    return None


def captions(table: Table, column: str | None, what: str) -> list[str | None]:
    """A column's cells as captions: text, or whole numbers as they are written; None where one is missing or empty.

    Raises:
        UserError: a cell is neither text nor a whole number.
    """
    if column is None:
        return [None] * len(table)
    where = f"{what}: column {column!r}"
    if names := _own_names(table, column):
        return as_class_names(table[column], names, where)
    texts = as_captions(table[column], where)
    there = [text for text in texts if text is not None]
    if there and all(NUMBER.fullmatch(text) for text in there):
        fraction = next((text for text in there if not text.lstrip("+-").isdigit()), None)
        if fraction is not None:
            raise UserError(f"{where} holds {fraction}, which is neither text nor a whole number; name another column")
    return texts


def caption_lists(table: Table, column: str | None, what: str) -> list[list[str]]:
    """As `captions`, of a column whose cells may be lists too; the captions of each row, empty ones left out.

    Raises:
        UserError: as `captions`.
    """
    if column is not None and any(isinstance(cell, list) for cell in table[column]):
        return [captions_of(cell, f"{what}: column {column!r}") for cell in table[column]]
    return [[text] if text else [] for text in captions(table, column, what)]


def captions_of(cell: Any, what: str) -> list[str]:
    """The captions of a cell, which may be a list of them; empty ones are left out.

    Raises:
        UserError: one is neither text nor a whole number.
    """
    return [text for text in as_captions(cell if isinstance(cell, list) else [cell], what) if text]


def as_captions(values: Iterable[Any], what: str) -> list[str | None]:
    """As `captions`, for values from anywhere, and whatever text they are."""
    return [_caption(value, what) for value in values]


def class_names(table: Table, column: str | None, names: Sequence[str], what: str) -> list[str | None]:
    """A column's cells as class names, None where one is missing or empty.

    Whole numbers count into ``names``, or into the names that the column itself has.

    Raises:
        UserError: numbers without names, or beyond them.
    """
    if column is None:
        return [None] * len(table)
    return as_class_names(table[column], names or _own_names(table, column), f"{what}: column {column!r}")


def as_class_names(values: Iterable[Any], names: Sequence[str], what: str) -> list[str | None]:
    """As `class_names`, for values from anywhere."""
    cells = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in values]
    texts = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    if texts and not names and all(NUMBER.fullmatch(text.strip()) for text in texts):
        raise UserError(_nameless(what))
    return [_class_name(cell, names, what) for cell in cells]


def _named(file: Path, what: str) -> str:
    """One of the files of a table, in words."""
    return what if what.endswith(file.name) else f"{what}: {file.name}"


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def _own_names(table: Table, column: str) -> Sequence[str]:
    feature = getattr(table, "features", {}).get(column)
    names: Sequence[str] = getattr(feature, "names", None) or ()
    return names


def _nameless(what: str) -> str:
    return f"{what} holds numbers; give their names, in order, as classes: [...]"


def _caption(value: Any, what: str) -> str | None:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{what} holds {value!r:.60}, which is neither text nor a whole number")
    return " ".join(value.split()) or None if value is not None else None


def _class_name(value: Any, names: Sequence[str], what: str) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str) and names and NUMBER.fullmatch(value.strip()) and float(value).is_integer():
        value = int(float(value))
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if not names:
            raise UserError(_nameless(what))
        if not 0 <= value < len(names):
            raise UserError(f"{what} holds {value}, but there are {len(names)} classes (numbered from 0)")
        return names[value]
    if not isinstance(value, str):
        raise UserError(f"{what} holds {value!r:.60}, which is neither text nor a whole number")
    return " ".join(value.split())
