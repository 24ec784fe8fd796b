"""The table of states on the page: a row for each, with its tag, its cell, and its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tasks.report.summary import named
from tasks.units import duration, size


@dataclass(frozen=True)
class Column:
    """One column: its title, and how it writes a number; texts have no format."""

    title: str
    key: str
    text: Callable[[float], str] | None = None

    @property
    def numeric(self) -> bool:
        return self.text is not None


@dataclass(frozen=True)
class CellText:
    """What a cell shows, and what it is sorted by where that is a number."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class StateRow:
    """One state."""

    cells: tuple[CellText, ...]
    last: bool
    """Whether it is the newest of its timeline."""


_CELL = {"protocol", "technique", "variant", "seed"}
"""What tells cells apart; a column of these that tells nothing apart is left out."""


def _percent(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _count(value: float) -> str:
    return f"{value:.0f}"


COLUMNS = (
    Column("state", "tag"),
    Column("protocol", "protocol"),
    Column("technique", "technique"),
    Column("variant", "variant"),
    Column("seed", "seed", _count),
    Column("step", "step", _count),
    Column("arrival", "arrival"),
    *(Column(name, name, _percent) for name in ("A_KA", "A_ZS")),
    Column("mean", "geometric_mean", _percent),
    *(Column(name, name, _percent) for name in ("ACC", "BWT", "FWT", "forgetting", "Transfer", "Average", "Last")),
    Column("normalized accuracy", "normalized_accuracy", _percent),
    Column("normalized retention", "normalized_retention", _percent),
    Column("A_KA, oracle", "oracle_A_KA", _percent),
    Column("routed right (%)", "routing_accuracy", _percent),
    Column("routes", "routed_bytes", size),
    Column("evaluated", "evaluated"),
    Column("samples", "budget_samples", lambda value: f"{value:,.0f}"),
    Column("time", "seconds", duration),
    Column("new", "bytes_new", size),
    Column("expert", "expert_bytes", size),
    Column("lost of it (%)", "expert_lost", _percent),
)


@dataclass(frozen=True)
class States:
    """The table: columns that say something, and a row for each state."""

    columns: tuple[Column, ...]
    rows: tuple[StateRow, ...]


def build(table: pd.DataFrame) -> States:
    """The states in the order of the tidy table, without columns that are the same, or empty, for all of them."""
    wanted = [column.key for column in COLUMNS]
    metrics = table[(table["dataset"] == "") & table["metric"].isin(wanted)]
    values = metrics.pivot(index="tag", columns="metric", values="value")
    states = named(table.drop_duplicates("tag")).set_index("tag", drop=False).join(values)
    shares = table[table["metric"] == "evaluated_share"]
    if len(shares):
        states["evaluated"] = shares.groupby("tag")["value"].min().map(lambda share: f"{100 * share:.3g} %")
        states["evaluated"] = states["evaluated"].fillna("all")
    newest = states.groupby("timeline")["step"].transform("max") == states["step"]
    columns = tuple(c for c in COLUMNS if c.key in states and (c.key not in _CELL or states[c.key].nunique() > 1))
    rows = [
        StateRow(tuple(_cell(column, state) for column in columns), last)
        for state, last in zip(states.to_dict("records"), newest, strict=True)
    ]
    return States(columns, tuple(rows))


def _cell(column: Column, state: Mapping[Any, Any]) -> CellText:
    value = state[column.key]
    if column.text is None:
        return CellText(str(value))
    return CellText(column.text(value), value) if value == value else CellText("")
