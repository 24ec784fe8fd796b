"""Continual merging over several orders of the same tasks: ACC and BWT, as OPCM reports them (arXiv 2501.09522)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import pandas as pd

from tasks.report.summary import final

_ORDER = re.compile(r"order-\d+")


@dataclass(frozen=True)
class OrderRow:
    """One way of merging over the orders, at the end of each; means and standard deviations in percentage points."""

    cell: str
    orders: int
    acc: float
    acc_deviation: float
    bwt: float
    """NaN with one task."""
    bwt_deviation: float

    def __str__(self) -> str:
        return (
            f"{self.cell}, {self.orders} orders: ACC {_shown(self.acc, self.acc_deviation)}, "
            f"BWT {_shown(self.bwt, self.bwt_deviation)}"
        )

    def as_dict(self) -> dict[str, object]:
        """The row as JSON has it, None for NaN."""
        values = vars(self)
        return {key: None if isinstance(one, float) and math.isnan(one) else one for key, one in values.items()}


def rows(table: pd.DataFrame) -> list[OrderRow]:
    """A row for each init, deploy and technique over the variants ``order-1``, ``order-2``, …, seeds too.

    Only timelines at the last step of their variant count; empty where fewer than two variants are orders.
    """
    last = final(table)
    last = last[last["variant"].map(lambda name: bool(_ORDER.fullmatch(name)))]
    if last["variant"].nunique() < 2:
        return []
    averages = []
    for (init, deploy, technique), each in last.groupby(["init", "deploy", "technique"], sort=False):
        values = {name: each[each["metric"] == name]["value"] for name in ("ACC", "BWT")}
        cell = f"{init} + {deploy}" + (f", {technique}" if technique else "")
        numbers = [number for one in values.values() for number in (float(one.mean()), float(one.std(ddof=0)))]
        averages.append(OrderRow(cell, int(each["variant"].nunique()), *numbers))
    return averages


def markdown(averages: list[OrderRow]) -> list[str]:
    """The rows as lines of a Markdown table; none without rows."""
    if not averages:
        return []
    lines = ["", "| over the orders | orders | ACC | BWT |", "|---|---|---|---|"]
    for one in averages:
        acc, bwt = _shown(one.acc, one.acc_deviation), _shown(one.bwt, one.bwt_deviation)
        lines.append(f"| {one.cell} | {one.orders} | {acc} | {bwt} |")
    return lines


def _shown(mean: float, deviation: float) -> str:
    return "–" if math.isnan(mean) else f"{mean:.1f} ± {deviation:.1f}".replace("-", "−")
