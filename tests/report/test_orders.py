"""ACC and BWT over several orders of the tasks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tasks.grid.cells import Cell
from tasks.report import markdown, orders, tidy
from tests.report import made_up

CELL = Cell("a", "zs", "all", "opcm", 0, "order-1")


def lineage(cell: Cell, arrivals: list[str], last: tuple[float, float]) -> list[made_up.Record]:
    first, second = arrivals
    top1 = [{"food": 10.0, "flags": 10.0, "faces": 60.0}]
    top1.append({first: 50.0, second: 12.0, "faces": 60.0})
    top1.append({first: last[0], second: last[1], "faces": 60.0})
    return made_up.lineage(cell, arrivals, top1, ["faces"])


def test_acc_and_bwt_are_means_over_the_orders() -> None:
    other = replace(CELL, timeline="b", variant="order-2")
    records = {
        CELL: lineage(CELL, ["food", "flags"], (44.0, 60.0)),  # ACC 52, BWT -6
        other: lineage(other, ["flags", "food"], (46.0, 50.0)),  # ACC 48, BWT -4
    }
    table = tidy.table(records, {})
    (row,) = orders.rows(table)
    assert (row.cell, row.orders) == ("zs + all, opcm", 2)
    assert (row.acc, row.acc_deviation, row.bwt, row.bwt_deviation) == pytest.approx((50, 2, -5, 1))
    assert str(row) == "zs + all, opcm, 2 orders: ACC 50.0 ± 2.0, BWT −5.0 ± 1.0"
    assert "| zs + all, opcm | 2 | 50.0 ± 2.0 | −5.0 ± 1.0 |" in markdown.summary(table)


def test_variants_that_are_no_orders_have_no_such_table() -> None:
    assert orders.rows(tidy.table({CELL: lineage(CELL, ["food", "flags"], (44.0, 60.0))}, {})) == []
    cells = [replace(CELL, timeline=name, variant=name) for name in ("large", "small")]
    table = tidy.table({cell: lineage(cell, ["food", "flags"], (44.0, 60.0)) for cell in cells}, {})
    assert orders.rows(table) == []
    assert "over the orders" not in markdown.summary(table)
