"""``table``: a CSV, TSV, JSON-lines or Parquet file (or a folder of such) with images, captions and classes.

Short form ``table:PATH``, ``table:PATH#train``, ``table:PATH#test``; settings: `Photographs`, and ``image``, the column
of images: paths (relative to the file), or the encoded images themselves in Parquet. Given splits are files that start
with ``train`` and ``test`` (or validation), or a column ``split`` (``split_column``) with those words.
"""

from __future__ import annotations

import hashlib
import posixpath
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tasks.errors import UserError
from tasks.prepare import files, hugging
from tasks.prepare.photographs import CAPTION_COLUMNS, LABEL_COLUMNS, Photographs, Row, given_splits, in_split, pick
from tasks.prepare.source import Outside

if TYPE_CHECKING:
    import datasets

IMAGE_COLUMNS = ("image", "img", "path", "file_name", "filename", "filepath", "image_path")
FORMATS: dict[str, hugging.Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
}


class Table(Photographs):
    """See the module's docstring."""

    kind: ClassVar[str] = "table"

    image: str | None = None
    split_column: str | None = None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if path.is_file():
            return path.suffix.lower() in FORMATS
        return any(p.suffix.lower() in FORMATS and p.stem != "metadata" for p in path.iterdir())

    def find(self, path: Path) -> tuple[list[Path], bool]:
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        found = [p for p in found if p.suffix.lower() in FORMATS and not p.name.startswith(".")]
        if not found:
            raise UserError(f"table: {self.path}: no table there; {', '.join(FORMATS)} are read")
        if len({FORMATS[p.suffix.lower()] for p in found}) > 1:
            raise UserError(f"table: {self.path}: holds tables of several formats; name one file")
        return in_split(found, self, path)

    def fetch_more(self, home: Path, found: Sequence[Path], target: Path, outside: Outside) -> None:
        outside.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=outside.cache, prefix=".table-") as scratch:
            images = self._images(self._load(found, Path(scratch)))
            named = list(dict.fromkeys(v for v in images if isinstance(v, str) and v))
        for done, name in enumerate(named, start=1):
            image = _there(home, name)
            if image is None:
                outside.complain(self._absent(name))
            else:
                files.copy(image, target / _stored(name))
            outside.progress(f"copying images of {self.path}", done, len(named))

    def rows(self, home: Path, found: Sequence[Path], scratch: Path) -> tuple[list[Row], bool]:
        what = f"table: {self.path}"
        table = self._load(found, scratch)
        captions = hugging.texts(table, hugging.find_column(table, self.caption, CAPTION_COLUMNS, what), (), what)
        label = hugging.find_column(table, self.label, LABEL_COLUMNS, what)
        classes = hugging.texts(table, label, self.classes, what)
        column = hugging.find_column(table, self.split_column, ("split",), what)
        splits = hugging.texts(table, column, (), what)
        chosen = pick(given_splits([s for s in dict.fromkeys(splits) if s]), self.split, what)
        images = self._images(table)
        rows = []
        for number, (image, caption, name, split) in enumerate(zip(images, captions, classes, splits, strict=True)):
            if chosen is not None and split != chosen:
                continue
            shown = f"{self.path}:{number + 1}"
            if isinstance(image, str) and image:
                rows.append(Row(shown, image, caption, name, partial(self._load_image, home, image)))
            else:
                data = hugging.encoded(image, shown)
                load = partial(hugging.encoded_at, images, number, shown)
                rows.append(Row(shown, hashlib.sha256(data).hexdigest(), caption, name, load))
        return rows, chosen is not None

    def _load_image(self, home: Path, name: str) -> bytes:
        try:
            return (home / _stored(name)).read_bytes()
        except FileNotFoundError:
            raise UserError(self._absent(name)) from None

    def _absent(self, name: str) -> str:
        return f"table: {self.path}: names the image {name!r}, and there is no such file"

    def _load(self, found: Sequence[Path], scratch: Path) -> datasets.Dataset:
        return hugging.load(FORMATS[found[0].suffix.lower()], found, scratch, f"table: {self.path}")

    def _images(self, table: datasets.Dataset) -> Any:
        """The image column's values, read as they are asked for: paths or encoded images."""
        column = hugging.find_column(table, self.image, IMAGE_COLUMNS, f"table: {self.path}")
        if column is None:
            raise UserError(
                f"table: {self.path}: no column of images among {', '.join(table.column_names)}; name it with image"
            )
        return table[column]


def _there(home: Path, name: str) -> Path | None:
    """Where an image is that a table names: where a raw copy of the table has it, or else where the table says."""
    return next((path for path in (home / _stored(name), home / name) if path.is_file()), None)


def _stored(name: str) -> str:
    """Where the raw copy of an image is that a table names: at the same place below it, or, from elsewhere, by hash."""
    tidy = posixpath.normpath(name.replace("\\", "/"))
    if not tidy.startswith(("/", "../")):
        return tidy
    return f"elsewhere/{hashlib.sha256(name.encode()).hexdigest()[:32]}{posixpath.splitext(tidy)[1]}"
