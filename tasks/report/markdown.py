"""The summary of a report as Markdown, and its cells as rows."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tasks.report import facts, orders
from tasks.report.summary import KEYS, effects, named, over_seeds
from tasks.scores import MEANS
from tasks.text import markdown, printable

_METRICS = (
    *MEANS,
    "ACC",
    "BWT",
    "FWT",
    "forgetting",
    "Transfer",
    "Average",
    "Last",
    "normalized_accuracy",
    "normalized_retention",
)


def summary(table: pd.DataFrame) -> str:
    """Title, headline numbers and, where cells differ in them, what initialization, deployment and technique did."""
    lines = [f"# {markdown(facts.title(table))}", "", markdown(facts.extent(table)), "", "| | | |", "|---|---|---|"]
    lines += [
        f"| {' | '.join(markdown(part) for part in (fact.name, fact.value, fact.note))} |"
        for fact in facts.headline(table)
    ]
    factors = effects(table, "geometric_mean")
    if len(factors):
        lines += ["", "| factor | level | final geometric mean | points from the average |", "|---|---|---|---|"]
        for row in factors.to_dict("records"):
            half = f" ± {row['half']:.2f}" if row["half"] == row["half"] else ""
            name = f"{markdown(row['factor'])} | {markdown(str(row['level']))}"
            lines.append(f"| {name} | {row['mean']:.2f} | {row['difference']:+.2f}{half} |")
    lines += orders.markdown(orders.rows(table))
    return "\n".join(lines) + "\n"


def cells(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each cell at its last step: what it is, and means over seeds of its metrics."""
    last = table[table["step"] == table.groupby("timeline")["step"].transform("max")]
    means = named(over_seeds(last, _METRICS))
    wide = means.pivot(index=["cell", *KEYS, "step"], columns="metric", values="mean").reset_index()
    present = [name for name in _METRICS if name in wide]
    return [
        {
            "cell": printable(row["cell"]),
            "step": int(row["step"]),
            **{m: round(row[m], 2) for m in present if row[m] == row[m]},
        }
        for row in wide.to_dict("records")
    ]
