"""Tables and archives through Hugging Face's ``datasets``: from local files only, caches in a folder that is given.

Its builders are used directly, not ``load_dataset``: so nothing is looked up on the network, no code of a data set is
run and nothing is written under the user's home. ``datasets`` is imported where it is used; it takes a second.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.errors import UserError

if TYPE_CHECKING:
    import datasets

Format = Literal["csv", "tsv", "json", "parquet", "imagefolder", "webdataset"]


def load(form: Format, files: Sequence[Path], scratch: Path, what: str) -> datasets.Dataset:
    """Read local files as one table, memory-mapped from ``scratch``; images stay encoded.

    A column of images has values ``{"bytes": ..., "path": ...}``, one of the two set.

    Raises:
        UserError: a file is missing, damaged or of another format; names ``what``.
    """
    import datasets
    import pyarrow as pa
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.exceptions import DatasetsError

    # A list of exact files: as patterns, names with [ or * would mean something else.
    data_files = DataFilesDict({"train": DataFilesList([str(path) for path in files], [])})
    quiet = datasets.utils.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        builder = _builder(form, data_files, scratch)
        builder.download_and_prepare()
        table = builder.as_dataset(split="train")
    except (
        DatasetsError,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        tarfile.TarError,
        pa.ArrowException,
    ) as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise UserError(f"{what}: cannot be read as {form}: {reason:.300}") from None
    finally:
        if quiet:
            datasets.enable_progress_bars()
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def _builder(form: Format, data_files: Any, scratch: Path) -> Any:
    common = {"cache_dir": str(scratch), "data_files": data_files}
    match form:
        case "csv" | "tsv":
            from datasets.packaged_modules.csv.csv import Csv

            # An empty cell is the only missing value: "NA" or "null" may be a caption.
            return Csv(**common, sep="\t" if form == "tsv" else ",", keep_default_na=False)
        case "json":
            from datasets.packaged_modules.json.json import Json

            return Json(**common)
        case "parquet":
            from datasets.packaged_modules.parquet.parquet import Parquet

            return Parquet(**common)
        case "imagefolder":
            from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

            return ImageFolder(**common, drop_labels=False)
        case "webdataset":
            from datasets.packaged_modules.webdataset.webdataset import WebDataset

            class Plain(WebDataset):
                """Decodes text and JSON only; class names may be words."""

                DECODERS = {k: WebDataset.DECODERS[k] for k in ("txt", "text", "json")} | {"cls": bytes.decode}

            return Plain(**common)


def find_column(table: datasets.Dataset, wanted: str | None, usual: Sequence[str], what: str) -> str | None:
    """The column that was asked for, else the first usual one that is there, else None.

    Raises:
        UserError: the one asked for isn't there.
    """
    if wanted is not None and wanted not in table.column_names:
        raise UserError(f"{what}: no column {wanted!r}; there are {', '.join(table.column_names)}")
    return wanted or next((name for name in usual if name in table.column_names), None)


def texts(table: datasets.Dataset, column: str | None, names: Sequence[str], what: str) -> list[str | None]:
    """A column's values as text, None where a value is missing or empty.

    Whole numbers count into ``names``, or into the names that the column itself has.

    Raises:
        UserError: numbers without names, or beyond them.
    """
    import datasets

    if column is None:
        return [None] * len(table)
    feature = table.features[column]
    if not names and isinstance(feature, datasets.ClassLabel):
        names = feature.names
    return as_texts(table[column], names, f"{what}: column {column!r}")


def as_texts(values: Iterable[Any], names: Sequence[str], what: str) -> list[str | None]:
    """As `texts`, for values from anywhere."""
    return [_text(value, names, what) for value in values]


def encoded(value: Any, what: str) -> bytes:
    """An encoded image out of a table's cell: bytes, or ``{"bytes": ...}``.

    Raises:
        UserError: there's none in it.
    """
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        raise UserError(f"{what}: has no image (got {value!r:.60})")
    return data


def encoded_at(column: Sequence[Any], number: int, what: str) -> bytes:
    """`encoded` for one cell of a column, read when it is asked for."""
    return encoded(column[number], what)


def _text(value: Any, names: Sequence[str], what: str) -> str | None:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str) and names and value.strip().isdigit():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if not names:
            raise UserError(f"{what} holds numbers; give their names, in order, as classes: [...]")
        if not 0 <= value < len(names):
            raise UserError(f"{what} holds {value}, but there are {len(names)} classes (numbered from 0)")
        return names[value]
    if not isinstance(value, str):
        raise UserError(f"{what} holds {value!r:.60}, which is neither text nor a whole number")
    return " ".join(value.split())
