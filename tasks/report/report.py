"""A report on some timelines: a page, its figures as files, and the table behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import vl_convert

from tasks.grid.cells import Cell
from tasks.progress import Progress, silent
from tasks.report import classes, figures, orders, page, provenance, records, tidy, vectors, vega
from tasks.report.classes import Classes
from tasks.report.figures import Figure
from tasks.report.orders import OrderRow
from tasks.report.provenance import Provenance
from tasks.report.summary import best_cell
from tasks.report.vectors import Missing, Vectors
from tasks.storage import atomic
from tasks.text import csv_cell, printable

NO_CLASSES = Classes()
_SCALE = 2.0
"""Pixels of a PNG for each of the page's."""


@dataclass(frozen=True)
class Written:
    """The files of a report."""

    page: Path
    tables: tuple[Path, ...]
    """The tidy table, as CSV and as parquet."""
    figures: tuple[Path, ...]
    """Each figure as SVG and as PNG."""
    left_out: tuple[Missing, ...]
    """The weights that the figure of task vectors lacks."""
    orders: tuple[OrderRow, ...] = ()
    """What merging comes to over several orders of the tasks, where variants are such orders."""
    states: int = 0
    """How many states it shows."""


def report(
    project: Path,
    cells: Sequence[Cell],
    to: Path,
    *,
    made_by: str,
    drawn_by: str,
    progress: Progress = silent,
) -> Written:
    """Write the report on some cells into the folder ``to``; equal states give equal bytes.

    Reads git, and weights out of the DVC cache where they are there; fetches nothing. ``made_by`` is the command line
    that records what is shown, ``drawn_by`` the one that draws this report; the page names both.

    Raises:
        UserError: a timeline has no states, or a checkpoint in the cache is damaged.
    """
    lineages = records.read(project, cells)
    geometry = vectors.of(project, lineages, progress)
    known = {name: experts.geometry for experts in geometry.known for name in experts.timelines}
    table = tidy.table(lineages, known)
    best = str(best_cell(table)["timeline"])
    shown = next(lineage for cell, lineage in lineages.items() if cell.timeline == best)
    made = provenance.of(lineages, best, made_by, drawn_by)
    return write(table, geometry, made, to, progress, classes.of(project, shown))


def write(
    table: pd.DataFrame,
    geometry: Vectors,
    made: Provenance,
    to: Path,
    progress: Progress = silent,
    by_class: Classes = NO_CLASSES,
) -> Written:
    """Write the report on a tidy table; files of an earlier report there are replaced."""
    table = _each_text(table, printable)
    drawn = figures.draw(table, geometry)
    content: dict[str, bytes] = {"index.html": page.build(table, drawn, geometry.missing, made, by_class).encode()}
    for done, figure in enumerate(drawn):
        progress("report", done, len(drawn), figure.name)
        content |= _files(figure)
    content["metrics.csv"] = _each_text(table, csv_cell).to_csv(index=False).encode()
    content["metrics.parquet"] = table.to_parquet(index=False)
    to.mkdir(parents=True, exist_ok=True)
    try:
        with atomic.private_folder(to / ".report.part") as part:  # all of it, or nothing where the disk is full
            (part / "figures").mkdir()
            for name, data in content.items():
                (part / name).write_bytes(data)
            (to / "figures").mkdir(exist_ok=True)
            for name in content:
                (part / name).replace(to / name)
    except OSError:
        with suppress(OSError):  # it holds an earlier report
            to.rmdir()
        raise
    for stale in {f"figures/{path.name}" for path in (to / "figures").iterdir()} - content.keys():
        if Path(stale).stem in figures.NAMES:  # an earlier report had something to show there
            (to / stale).unlink()
    progress("report", len(drawn), len(drawn))
    return Written(
        to / "index.html",
        (to / "metrics.csv", to / "metrics.parquet"),
        tuple(to / name for name in content if name.startswith("figures/")),
        geometry.missing,
        tuple(orders.rows(table)),
        table["tag"].nunique(),
    )


def _each_text(table: pd.DataFrame, safe: Callable[[str], str]) -> pd.DataFrame:
    """The table with its texts made safe: names come from files, some of them of other people."""
    return table.map(lambda value: safe(value) if isinstance(value, str) else value)


def _files(figure: Figure) -> dict[str, bytes]:
    svg = vl_convert.vegalite_to_svg(figure.specification(standalone=True), vega.LITE)
    return {
        f"figures/{figure.name}.svg": svg.encode(),
        f"figures/{figure.name}.png": vl_convert.svg_to_png(svg, _SCALE),
    }
