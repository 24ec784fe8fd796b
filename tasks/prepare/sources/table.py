"""``table``: a CSV, TSV, JSON-lines or Parquet file (or a folder of such) with images, captions and classes.

Short form ``table:PATH``, ``table:PATH#train``, ``table:PATH#test``; settings: `Photographs`, and ``image``, the column
of images: paths (relative to the file), or the encoded images themselves in Parquet. Given parts are files that start
with ``train`` and ``test`` (or validation, dev), or a column ``split`` (``split_column``) with those words. ``quoted``
says whether ``"`` quotes cells: by default in CSV and not in TSV.
"""

from __future__ import annotations

import hashlib
import posixpath
import tempfile
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from tasks.errors import UserError
from tasks.prepare import delimited, files, hugging, listing, tables
from tasks.prepare.image_source import Row, Rows
from tasks.prepare.photographs import Photographs, Selection, part_of_files, part_of_rows
from tasks.prepare.source import Context, Outside
from tasks.prepare.tables import FORMATS, Table


class TableSource(Photographs):
    """CSV, TSV, JSON lines or Parquet: ``table:PATH``, ``table:PATH#train``; columns of images (paths, in Parquet also
    encoded images), captions, classes."""

    name: ClassVar[str] = "table"

    image: str | None = None
    split_column: str | None = None
    quoted: bool | None = None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() in FORMATS
        return any(_is_table(file) and file.stem != "metadata" for file in path.iterdir())

    def find(self, path: Path) -> Selection:
        if not path.is_dir():
            files, left = [path] if _is_table(path) else [], []
        else:
            there = listing.walk(path)
            files = [file for file in there if _is_table(file) and file.parent == path]
            files = files or [file for file in there if _is_table(file)]  # as in data/train-00000-of-00001.parquet
            left = [file for file in there if file not in set(files)]
        if not files:
            raise UserError(f"table: {self.path}: no table there; {', '.join(FORMATS)} are read")
        if len({FORMATS[file.suffix.lower()] for file in files}) > 1:
            raise UserError(f"table: {self.path}: holds tables of several formats; name one file")
        chosen = part_of_files(sorted(files), self)
        return Selection(chosen.files, chosen.given, tuple(left), chosen.notes)

    def at_most_in(self, file: Path) -> int | None:
        return tables.at_most(file, f"table: {self.path}")

    def fetch_more(self, home: Path, fetched: Sequence[Path], target: Path, outside: Outside) -> Collection[Path]:
        outside.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=outside.cache, prefix=".table-") as scratch:
            images = self._images(self._load(fetched, Path(scratch), outside.limits.cell_characters))
            named = list(dict.fromkeys(path for cell in images if (path := _path_in(cell))))
        copied = []
        for done, name in enumerate(named, start=1):
            image = _there(home, name)
            if outside.inside and _stored(name).startswith("elsewhere/"):
                outside.complain(
                    f"table: {self.path}: names the image {name!r}, which lies outside of it; put it inside"
                )
            elif image is None:
                outside.complain(self._absent(name, home))
            else:
                files.copy(image, target / _stored(name))
                copied.append(image)
            outside.progress(f"copying images of {self.path}", done, len(named))
        return copied

    def rows(self, home: Path, files: Sequence[Path], context: Context) -> Rows:
        what = f"table: {self.path}"
        table = self._load(files, context.scratch, context.limits.cell_characters)
        captions = tables.caption_lists(table, tables.find(table, self.caption, tables.CAPTION, what), what)
        label = tables.find(table, self.label, tables.LABEL, what)
        classes = tables.class_names(table, label, self.classes, what)
        column = tables.find(table, self.split_column, ("split",), what)
        splits = tables.captions(table, column, what)
        chosen, outside = part_of_rows(splits, self)
        images = self._images(table)
        rows: list[Row] = []
        for number, (image, several, name, split) in enumerate(zip(images, captions, classes, splits, strict=True)):
            if chosen is not None and split != chosen:
                continue
            shown = f"{self.path}:{number + 1}"
            if path := _path_in(image):
                rows += Row(shown, path, None, name, partial(self._load_image, home, path)).with_captions(several)
                continue
            try:
                data = hugging.encoded(image, shown)
            except UserError as error:
                context.complain(str(error))
                continue
            load = partial(hugging.encoded_at, images, number, shown)
            rows += Row(shown, hashlib.sha256(data).hexdigest(), None, name, load).with_captions(several)
        return Rows(rows, chosen is not None, (*tables.notes(table), *outside))

    def _load_image(self, home: Path, name: str) -> bytes:
        try:
            return files.image(home / _stored(name))
        except FileNotFoundError:
            raise UserError(self._absent(name, home)) from None

    def _absent(self, name: str, home: Path) -> str:
        try:
            problem = listing.fault(home / name) or "cannot be read"
        except ValueError:  # a null byte
            problem = "is no name of a file"
        reason = "and there is no such file" if problem == "no such file" else f"which {problem}"
        return f"table: {self.path}: names the image {name!r:.200}, {reason}"

    def _load(self, files: Sequence[Path], scratch: Path, longest: int) -> Table:
        return tables.load(files, scratch, f"table: {self.path}", longest, quoted=self.quoted)

    def _images(self, table: Table) -> Any:
        """The image column's values, read as they are asked for: paths or encoded images."""
        column = tables.find(table, self.image, tables.IMAGE, f"table: {self.path}")
        if column is None:
            names = ", ".join(table.column_names)
            if any(map(delimited.names_an_image, table.column_names)):
                raise UserError(
                    f"table: {self.path}: its first line ({names}) is a row; put a line of column names before it, as "
                    "image,caption"
                )
            raise UserError(f"table: {self.path}: no column of images among {names}; name it with image")
        return table[column]


def _is_table(file: Path) -> bool:
    return file.suffix.lower() in FORMATS and not listing.is_hidden(file.name)


def _path_in(cell: Any) -> str | None:
    """The path in a cell of the column of images; None where it holds the image itself, or nothing."""
    path = cell.get("path") if isinstance(cell, dict) and not cell.get("bytes") else cell
    return path if isinstance(path, str) and path else None


def _there(home: Path, name: str) -> Path | None:
    """Where an image is that a table names: where a raw copy of the table has it, or else where the table says."""
    tidy = name.strip()
    candidates = (home / _stored(name), home / name, home / _stored(tidy), home / tidy)
    try:
        return next((path for path in candidates if path.is_file()), None)
    except (OSError, ValueError):  # too long, or with a null byte: no name of a file
        return None


def _stored(name: str) -> str:
    """Where the raw copy of an image is that a table names: at the same place below it, or, from elsewhere, by hash."""
    tidy = posixpath.normpath(name.replace("\\", "/"))
    if not tidy.startswith(("/", "../")):
        return tidy
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32]
    return f"elsewhere/{digest}{posixpath.splitext(tidy)[1]}"
