"""Parquet files of images, as ``datasets`` writes them: columns found, row groups chosen, images left encoded.

What is read of them goes to an Arrow file in a folder for temporary files, and is memory-mapped from there.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tasks.errors import UserError
from tasks.prepare import hugging, tables
from tasks.storage import atomic
from tasks.text import one_line

_LARGEST_FACTOR, _ALWAYS = 64, 1 << 28
"""How many times its size a file may unpack to, and how many bytes besides; encoded images hardly shrink."""
_ROWS, _AT_ONCE = 1024, 1 << 28
"""Rows and bytes read at a time, at most: a file can say once what all of its rows hold."""


@dataclass(frozen=True)
class Columns:
    """Which columns are read."""

    image: str
    label: str | None
    caption: str | None
    classes: tuple[str, ...] = ()
    """Names that numbers in the column of classes count into."""

    @property
    def read(self) -> list[str]:
        return list(dict.fromkeys(one for one in (self.image, self.label, self.caption) if one))


@dataclass(frozen=True)
class Cells:
    """Rows that were read: where each is from, its label and caption, and the images by number."""

    file: list[str]
    row: list[int]
    label: list[Any]
    caption: list[Any]
    images: Any

    def image(self, number: int, shown: str) -> bytes:
        """The encoded image of a row.

        Raises:
            UserError: it has none; names ``shown``.
        """
        return hugging.encoded(self.images[number].as_py(), shown)


def columns(
    schema: pa.Schema,
    image: str | None,
    label: str | None,
    caption: str | None,
    classes: Mapping[str, Sequence[str]],
    what: str,
) -> Columns:
    """The columns of images, classes and captions: those named, or those of usual names, or the only ones of a kind.

    ``classes`` are names of classes from elsewhere, by column; those of the file itself come first.

    Raises:
        UserError: one is missing, or several may be meant; names ``what``.
    """
    features = hugging.features(schema)
    kinds = {name: hugging.kind(one) for name, one in features.items()}
    for name in kinds:
        if kinds[name] == "image" or (kinds[name] == "other" and _is_encoded(schema.field(name).type)):
            kinds[name] = "image"
        elif name in classes and kinds[name] != "image":
            kinds[name] = "class"
    names = list(schema.names)
    found_image = _column(names, kinds, image, tables.IMAGE, "image", what)
    if found_image is None:
        raise UserError(f"{what}: no column of images among {', '.join(names)}; name it with image")
    if _are_paths(schema.field(found_image).type):
        raise UserError(f"{what}: column {found_image!r} {hugging.PATHS}")
    if not _is_encoded(schema.field(found_image).type):
        raise UserError(
            f"{what}: column {found_image!r} holds {schema.field(found_image).type}, not encoded images; name the "
            "column of images with image"
        )
    found_label = _column(names, kinds, label, tables.LABEL, "class", what)
    found_caption = _column(names, kinds, caption, tables.CAPTION, "", what)
    own = getattr(features.get(found_label or ""), "names", None) or classes.get(found_label or "", ())
    return Columns(found_image, found_label, found_caption, tuple(own))


def _column(
    names: Sequence[str], kinds: Mapping[str, str], wanted: str | None, usual: Sequence[str], kind: str, what: str
) -> str | None:
    if wanted is not None:
        if wanted not in names:
            raise UserError(f"{what}: no column {wanted!r}; there are {', '.join(names)}")
        return wanted
    if there := next((name for name in usual if name in names), None):
        return there
    of_kind = [name for name in names if kind and kinds.get(name) == kind]
    if len(of_kind) > 1:
        setting = "image" if kind == "image" else "label"
        raise UserError(f"{what}: the columns {', '.join(of_kind)} may be meant; name one with {setting}")
    return of_kind[0] if of_kind else None


def _are_paths(kind: pa.DataType) -> bool:
    """Whether a column holds paths of images and cannot hold images: texts, or a structure of a path without bytes."""
    if pa.types.is_struct(kind) and not _is_encoded(kind):
        return any(field.name == "path" and _are_paths(field.type) for field in kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_encoded(kind: pa.DataType) -> bool:
    """Whether a column may hold encoded images: bytes, or a structure of bytes and a path."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_encoded(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def groups(file: pa.parquet.ParquetFile, columns: Columns, wanted: Collection[str]) -> list[int]:
    """Those row groups of a file that may have a row of the wanted classes, by their statistics.

    All of them, where there are no statistics; none where no class is wanted that the column could hold.
    """
    every = list(range(file.metadata.num_row_groups))
    if columns.label is None or columns.label not in file.schema_arrow.names:
        return every
    cells = _cells(columns, wanted)
    place = next(
        (i for i in range(file.metadata.num_columns) if file.metadata.schema.column(i).path == columns.label), None
    )
    if place is None:
        return every
    chosen = []
    for number in every:
        statistics = file.metadata.row_group(number).column(place).statistics
        if statistics is None or not statistics.has_min_max:
            chosen.append(number)
            continue
        low, high = _plain(statistics.min), _plain(statistics.max)
        if any(type(cell) is type(low) and low <= cell <= high for cell in cells):
            chosen.append(number)
    return chosen


def first(file: pa.parquet.ParquetFile, count: int | None, before: int) -> list[int]:
    """The first row groups of a file, so that ``count`` rows come together with the ``before`` ones; else all."""
    numbers = []
    for number in range(file.metadata.num_row_groups):
        if count is not None and before >= count:
            break
        numbers.append(number)
        before += file.metadata.row_group(number).num_rows
    return numbers


def weight(file: pa.parquet.ParquetFile, columns: Columns, groups: Sequence[int]) -> int:
    """The bytes that the columns that are read take in some row groups."""
    total = 0
    for number in groups:
        group = file.metadata.row_group(number)
        chunks = [group.column(i) for i in range(group.num_columns)]
        total += sum(c.total_compressed_size for c in chunks if c.path_in_schema.partition(".")[0] in columns.read)
    return total


def keep(
    file: pa.parquet.ParquetFile, groups: Sequence[int], columns: Sequence[str], size: int, target: Path, what: str
) -> None:
    """Write some row groups of a file of ``size`` bytes, none empty, and some of its columns, as a file of their own.

    Raises:
        UserError: they unpack to far more than the file has bytes; names ``what``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fields = [file.schema_arrow.field(name) for name in columns]
    schema = pa.schema(fields).with_metadata(file.schema_arrow.metadata)
    with atomic.made(target) as part, pa.parquet.ParquetWriter(part, schema) as writer:
        for _, numbered in itertools.groupby(_batches(file, groups, size, what, list(columns)), key=itemgetter(0)):
            table = pa.Table.from_batches([batch for _, batch in numbered]).select(columns).cast(schema)
            writer.write_table(table, row_group_size=len(table))  # one of theirs stays one, by which rows are counted


def batches(path: Path, what: str) -> Iterator[pa.RecordBatch]:
    """All rows of a file, a few at a time.

    Raises:
        UserError: it is damaged, or unpacks to far more than it has bytes; names ``what``.
    """
    with opened(path, what) as file:
        for _, batch in _batches(file, range(file.metadata.num_row_groups), path.stat().st_size, what):
            yield batch


def _batches(
    file: pa.parquet.ParquetFile, groups: Sequence[int], size: int, what: str, columns: list[str] | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of some row groups with the number of each group, a few at a time; ``size``: bytes of the file.

    Raises:
        UserError: they unpack to far more than the file has bytes.
    """
    unpacked, allowed = 0, _LARGEST_FACTOR * size + _ALWAYS
    said = {number: int(file.metadata.row_group(number).total_byte_size) for number in groups}
    too_much = UserError(f"{what}: unpacks to more than {_LARGEST_FACTOR} times its size")
    if sum(said.values()) > allowed:
        raise too_much
    for number in groups:
        rows = max(1, min(_ROWS, _AT_ONCE // max(1, said[number])))  # no cell is larger than its group
        for batch in file.iter_batches(rows, row_groups=[number], columns=columns):
            if (unpacked := unpacked + _bytes(batch)) > allowed:
                raise too_much
            yield number, batch


def _bytes(batch: pa.RecordBatch) -> int:
    """Of its rows, with the values that a dictionary holds once for many of them."""
    columns: list[Any] = batch.columns
    return sum(int((c.dictionary_decode() if pa.types.is_dictionary(c.type) else c).nbytes) for c in columns)


def _cells(columns: Columns, wanted: Collection[str]) -> list[Any]:
    """What cells of the column of classes hold for the wanted ones: numbers, and names as they are."""
    return [*wanted, *(number for number, name in enumerate(columns.classes) if name in wanted)]


def _plain(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


@contextmanager
def opened(file: Any, what: str) -> Iterator[pa.parquet.ParquetFile]:
    """A Parquet file, of a path or an open file.

    Raises:
        UserError: it is damaged, or none.
    """
    try:
        with pa.parquet.ParquetFile(file) as parquet:
            yield parquet
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{what}: is no readable Parquet file ({one_line(str(error)):.200})") from None


def read(
    home: Path,
    files: Sequence[Path],
    columns: Columns,
    wanted: Collection[str],
    first: int | None,
    scratch: Path,
    what: str,
    starts_of: Mapping[str, Sequence[int]] = {},
) -> Cells:
    """The rows of some files: of the ``wanted`` classes alone where there are some, and at most about ``first``.

    ``starts_of``: of files that are parts of larger ones, the number of each row group's first row there.

    Raises:
        UserError: a file is damaged, or its columns differ from those of the first.
    """
    target = scratch / f"rows-{len(list(scratch.iterdir()))}.arrow"
    cells = Cells([], [], [], [], None)
    schema: pa.Schema | None = None
    writer: Any = None
    with pa.OSFile(str(target), "wb") as sink:
        for path in files:
            name = path.relative_to(home).as_posix()
            with opened(path, f"{what}: {name}") as parquet:
                if missing := [one for one in columns.read if one not in parquet.schema_arrow.names]:
                    raise UserError(f"{what}: {name}: no column {missing[0]!r}, which other files of it have")
                image = pa.schema([parquet.schema_arrow.field(columns.image).with_nullable(True)])
                if schema is None:
                    schema = image
                    writer = pa.ipc.new_file(sink, schema)
                chosen = groups(parquet, columns, wanted) if wanted else list(range(parquet.metadata.num_row_groups))
                first_rows = starts_of.get(name) or starts(parquet)
                row, at = 0, None
                named = f"{what}: {name}"
                for group, batch in _batches(parquet, chosen, path.stat().st_size, named, columns.read):
                    if group != at:
                        if first is not None and len(cells.row) >= first:
                            break
                        row, at = first_rows[group], group
                    kept = _kept(batch, columns, wanted)
                    writer.write_table(pa.table(batch.select([columns.image])).take(kept).cast(schema))
                    cells.file.extend([name] * len(kept))
                    cells.row.extend(row + one for one in kept)
                    for column, into in ((columns.label, cells.label), (columns.caption, cells.caption)):
                        values = batch.column(column).take(pa.array(kept, pa.int64())).to_pylist() if column else []
                        into.extend(values or [None] * len(kept))
                    row += len(batch)
        if writer is None:
            raise UserError(f"{what}: has no Parquet files")
        writer.close()
    with pa.memory_map(str(target)) as source:
        images = pa.ipc.open_file(source).read_all()[columns.image]
    return Cells(cells.file, cells.row, cells.label, cells.caption, images)


def starts(parquet: pa.parquet.ParquetFile) -> list[int]:
    """The number of each row group's first row, counted from 1."""
    starts = [1]
    for number in range(parquet.metadata.num_row_groups):
        starts.append(starts[-1] + parquet.metadata.row_group(number).num_rows)
    return starts


def _kept(batch: pa.RecordBatch, columns: Columns, wanted: Collection[str]) -> list[int]:
    """The rows of a batch that are of the wanted classes; all, where none are said."""
    if not wanted or columns.label is None:
        return list(range(len(batch)))
    cells = set(_cells(columns, wanted))
    return [number for number, cell in enumerate(batch.column(columns.label).to_pylist()) if _plain(cell) in cells]
