"""JSON and Parquet tables through Hugging Face's ``datasets``: from local files only, caches in a folder that is given.

Its parts are used directly, not ``load_dataset``: so nothing is looked up on the network, no code of a data set is
run and nothing is written under the user's home. ``datasets`` is imported where it is used; it takes a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.errors import UserError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

PATHS = (
    "holds paths of images, not encoded images, and those of a hub are not read; fetch the repository (hf download) "
    "and read the file with table:, whose images lie beside it"
)
"""What is said of a column of paths."""


def load_json(files: Sequence[Path], scratch: Path, what: str) -> datasets.Dataset:
    """Read local JSON files as one table, memory-mapped from ``scratch``.

    Raises:
        UserError: a file is missing, damaged or of another format; names ``what``.
    """
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.packaged_modules.json.json import Json

    # A list of exact files: as patterns, names with [ or * would mean something else.
    data_files = DataFilesDict({"train": DataFilesList([str(path) for path in files], [])})
    with silent(), _readable("json", what):
        builder = Json(cache_dir=str(scratch), data_files=data_files)
        builder.download_and_prepare()
        return builder.as_dataset(split="train")


def converted(batches: Iterable[pa.RecordBatch], schema: pa.Schema, scratch: Path, what: str) -> datasets.Dataset:
    """Rows of Parquet files as one table of this schema, memory-mapped from ``scratch``; images stay encoded.

    A column of images has values ``{"bytes": ..., "path": ...}``, one of the two set.

    Raises:
        UserError: rows are of another schema; names ``what``.
    """
    import datasets
    import pyarrow as pa
    from datasets.arrow_writer import ArrowWriter

    target = scratch / f"table-{len(list(scratch.iterdir()))}.arrow"
    with silent(), _readable("parquet", what):
        with ArrowWriter(features=datasets.Features.from_arrow_schema(schema), path=str(target)) as writer:
            for batch in batches:
                writer.write_table(pa.Table.from_batches([batch]))
            writer.finalize()
        table = datasets.Dataset.from_file(str(target))
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


@contextmanager
def _readable(form: str, what: str) -> Iterator[None]:
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (
        DatasetsError,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        RecursionError,
        pa.ArrowException,
    ) as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise UserError(f"{what}: cannot be read as {form}: {reason:.300}") from None


@contextmanager
def silent() -> Iterator[None]:
    """Without the library's progress bars and log lines: what is wrong is in the error."""
    import datasets

    bars, level = datasets.utils.is_progress_bar_enabled(), datasets.utils.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.utils.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def features(schema: Any) -> dict[str, Any]:
    """The columns of an Arrow schema as ``datasets``' features, with the names of classes that it has."""
    import datasets

    return dict(datasets.Features.from_arrow_schema(schema))


def kind(feature: Any) -> Literal["image", "class", "other"]:
    """What a feature is, as far as it matters here."""
    import datasets

    if isinstance(feature, datasets.Image):
        return "image"
    return "class" if isinstance(feature, datasets.ClassLabel) else "other"


def encoded(value: Any, what: str) -> bytes:
    """An encoded image out of a table's cell: bytes, or ``{"bytes": ...}``.

    Raises:
        UserError: there's none in it.
    """
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(value, dict) and not data and value.get("path"):
        raise UserError(f"{what}: the column of images {PATHS}")
    if not isinstance(data, bytes) or not data:
        raise UserError(f"{what}: has no image (got {value!r:.60})")
    return data


def encoded_at(column: Sequence[Any], number: int, what: str) -> bytes:
    """`encoded` for one cell of a column, read when it is asked for."""
    return encoded(column[number], what)
