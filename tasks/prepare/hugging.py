"""JSON and Parquet tables through Hugging Face's ``datasets``: from local files only, caches in a folder that is given.

Its builders are used directly, not ``load_dataset``: so nothing is looked up on the network, no code of a data set is
run and nothing is written under the user's home. ``datasets`` is imported where it is used; it takes a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.errors import UserError

if TYPE_CHECKING:
    import datasets

Format = Literal["json", "parquet"]


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
    try:
        with silent():
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
        RecursionError,
        pa.ArrowException,
    ) as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise UserError(f"{what}: cannot be read as {form}: {reason:.300}") from None
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


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


def _builder(form: Format, data_files: Any, scratch: Path) -> Any:
    common = {"cache_dir": str(scratch), "data_files": data_files}
    if form == "json":
        from datasets.packaged_modules.json.json import Json

        return Json(**common)
    from datasets.packaged_modules.parquet.parquet import Parquet

    return Parquet(**common)


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
    if not isinstance(data, bytes) or not data:
        raise UserError(f"{what}: has no image (got {value!r:.60})")
    return data


def encoded_at(column: Sequence[Any], number: int, what: str) -> bytes:
    """`encoded` for one cell of a column, read when it is asked for."""
    return encoded(column[number], what)
