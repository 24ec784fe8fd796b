"""CSV and TSV tables as they are met: any usual delimiter, a byte order mark, a trailing comma, columns with spaces.

Every cell is text, and an empty cell is the only missing value: ``NA`` and ``null`` are words. CSV quotes cells with
``"`` (RFC 4180); TSV has no quotes unless that is asked for. Each row is held against the lines of the file, so that
a lone quote cannot swallow rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from tasks.errors import UserError
from tasks.prepare import encodings
from tasks.prepare.listing import EXTENSIONS, HEIC
from tasks.text import shortened

DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class TextTable:
    """Columns of text; a missing value is None."""

    cells: dict[str, list[str | None]]
    notes: tuple[str, ...] = field(default=())
    """What a person should know of how the file was read."""

    @property
    def column_names(self) -> list[str]:
        return list(self.cells)

    def __len__(self) -> int:
        return len(next(iter(self.cells.values()), ()))

    def __getitem__(self, name: str) -> list[str | None]:
        return self.cells[name]


def read(path: Path, what: str, longest: int, *, quoted: bool | None = None) -> TextTable:
    """Read a .csv or .tsv file; ``quoted`` says whether ``"`` quotes cells, by default in .csv alone.

    ``longest`` is the number of characters that a cell may have.

    Raises:
        UserError: it is not UTF-8, its quotes do not close, a cell is too long, or a row has more cells than the
            header; names ``what`` and the line.
    """
    tabs = path.suffix.lower() == ".tsv"
    form = "tsv" if tabs else "csv"
    reader = _DelimitedReader(f"{what}: cannot be read as {form}", not tabs if quoted is None else quoted, longest)
    return reader.table(encodings.read(path, reader.what), "\t" if tabs else DELIMITERS)


def joined(tables: Sequence[TextTable], what: str) -> TextTable:
    """The rows of several tables one after another.

    Raises:
        UserError: they have different columns.
    """
    first = tables[0]
    for table in tables[1:]:
        if set(table.cells) != set(first.cells):
            raise UserError(
                f"{what}: its files have different columns: {', '.join(first.cells)}, and {', '.join(table.cells)}"
            )
    cells = {name: [cell for table in tables for cell in table.cells[name]] for name in first.cells}
    return TextTable(cells, tuple(dict.fromkeys(note for table in tables for note in table.notes)))


@dataclass(frozen=True)
class _DelimitedReader:
    what: str
    quoted: bool
    longest: int

    def table(self, text: str, delimiters: str) -> TextTable:
        lines = list(io.StringIO(text, newline=""))  # ends with \n, \r or both, as the csv module sees them
        first = next((line for line in lines if line.strip()), None)
        if first is None:
            raise UserError(f"{self.what}: it is empty; a table has a line of column names, and one for each row")
        named = _named_delimiter(first)
        if named:
            lines[lines.index(first)] = "\n"
            first = next((line for line in lines if line.strip()), "")
        second = next((line for line in lines[lines.index(first) + 1 :] if line.strip()), "") if first else ""
        delimiter = named or self._delimiter(first, second, delimiters)
        rows = self._rows(lines, delimiter)
        header = [name.strip() for name in next(rows, (0, []))[1]]
        used = len(header)
        while used and not header[used - 1]:  # a delimiter at the end
            used -= 1
        names, notes = _unique(header[:used])
        if not names:
            raise UserError(f"{self.what}: it names no columns")
        if not self.quoted and _all_wrapped(names):
            raise UserError(f"{self.what}: the names of its columns are in quotes; quoted: true reads what is inside")
        cells: dict[str, list[str | None]] = {name: [] for name in names}
        short = 0
        for line, row in rows:
            if any(cell.strip() for cell in row[used:]):
                raise UserError(
                    f"{self.what}: line {line} has {len(row)} cells and the header {used}; a cell that holds "
                    f"{'a tab cannot be read without quotes' if delimiter == chr(9) else f'{delimiter!r} needs quotes'}"
                )
            if any(len(cell) > self.longest for cell in row):
                raise UserError(
                    f"{self.what}: line {line} has a cell of more than {self.longest} characters "
                    "(limits.cell_characters in params.yaml)"
                )
            short += len(row) < used
            for name, cell in zip(names, row[:used] + [""] * (used - len(row)), strict=True):
                cells[name].append(cell if cell.strip() else None)
        if short:
            notes.append(f"{short} row{'s'[: short > 1]} with fewer cells than the header: those that lack are empty")
        if not self.quoted:
            wrapped = [name for name in names if _all_wrapped(cells[name])]
            if wrapped:
                notes.append(
                    f"every cell of the column {wrapped[0]!r} is in quotes, which are read as text; quoted: true reads "
                    "what is inside of them"
                )
        return TextTable(cells, tuple(notes))

    def _delimiter(self, first: str, second: str, delimiters: str) -> str:
        """The delimiter that stands most often in the header, outside of quotes; of several, as often in the next line.

        Raises:
            UserError: it is none of ``delimiters``, and another one divides the header.
        """
        header, row = (self._outside(line) for line in (first, second))

        def often(one: str) -> tuple[int, bool]:
            return header.count(one), header.count(one) == row.count(one)

        best = max(delimiters, key=often)
        other = max(DELIMITERS, key=often)
        if not header.count(best) and header.count(other):
            raise UserError(f"{self.what}: its first line has no tab, and is divided by {other!r}; name the file .csv")
        return best

    def _outside(self, line: str) -> str:
        return "".join(line.split('"')[::2]) if self.quoted else line

    def _rows(self, lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
        """The line on which each row begins, and its cells; empty lines are no rows."""
        if not self.quoted:
            for number, line in enumerate(lines, start=1):
                if line.strip("\r\n"):
                    yield number, line.rstrip("\r\n").split(delimiter)
            return
        csv.field_size_limit(max(csv.field_size_limit(), 2 * self.longest))  # `table` refuses what is too long
        reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
        columns, begin = 0, 1
        try:
            for row in reader:
                end = reader.line_num
                if row and (columns or any(cell.strip() for cell in row)):
                    columns = columns or len(row)
                    self._require_one_row(lines, begin, end, delimiter, columns)
                    yield begin, row
                begin = end + 1
        except csv.Error as error:
            reason = "a quote that opens is not closed" if "unexpected end" in str(error) else str(error)
            raise UserError(
                f"{self.what}: line {begin}: {reason}; a quote inside a cell is written twice, in a cell in quotes"
            ) from None

    def _require_one_row(self, lines: list[str], begin: int, end: int, delimiter: str, columns: int) -> None:
        """A row of several lines is one cell with line ends in it, unless its lines look like rows themselves.

        Raises:
            UserError: they do, so that a lone quote has swallowed them.
        """
        for number in range(begin + 1, end + 1):
            cells = [cell.strip().strip('"') for cell in lines[number - 1].split(delimiter)]
            if len(cells) >= columns > 1 and any(names_an_image(cell) for cell in cells):
                raise UserError(
                    f"{self.what}: line {begin}: a quote opens there and closes on line {end}, and line {number} in "
                    f"between looks like a row ({shortened(lines[number - 1].strip(), 60)!r}); a quote that is part of "
                    "the text is written twice, in a cell in quotes"
                )


def _named_delimiter(line: str) -> str:
    """The delimiter that a line ``sep=;`` names, as Excel has it before the header; empty if it is none."""
    word, _, delimiter = line.strip(" \r\n").partition("=")
    return delimiter if word.lower() == "sep" and delimiter and delimiter in DELIMITERS else ""


def names_an_image(cell: str) -> bool:
    """Whether a cell is the name of an image file."""
    return PurePath(cell).suffix.lower() in EXTENSIONS | HEIC


def _all_wrapped(cells: Sequence[str | None]) -> bool:
    there = [cell for cell in cells if cell is not None]
    return bool(there) and all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in there)


def _unique(header: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names for the columns, no two alike; and notes on those that were."""
    names: list[str] = []
    notes: list[str] = []
    for number, name in enumerate(header, start=1):
        name = name or f"column {number}"
        if name in names:
            notes.append(f"the column {name!r} is there more than once; the first is read")
            name = f"{name} (column {number})"
        names.append(name)
    return names, list(dict.fromkeys(notes))
