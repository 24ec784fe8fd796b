"""The figure of compatibility: a row of queries by a column of galleries, and which pairs do worse."""

from __future__ import annotations

from typing import Any

from tasks.grid.cells import Cell
from tasks.report import figures, tidy
from tasks.report.figures import compatibility
from tasks.report.vectors import Vectors
from tests.report import made_up

CELL = Cell("demo", "ema", "ema", "linear", 0)
TOP1 = [{"food": 10.0, "faces": 60.0}, {"food": 50.0, "faces": 58.0}, {"food": 40.0, "faces": 55.0}]
RECALL = [
    {"food": {"0": 40.0}, "faces": {"0": 60.0}},
    {"food": {"0": 44.0, "1": 50.0}, "faces": {"0": 58.0, "1": 62.0}},
    {"food": {"0": 30.0, "1": 40.0, "2": 52.0}, "faces": {"0": 50.0, "1": 60.0, "2": 60.0}},
]


def table(*, measured: bool = True) -> Any:
    lineage = made_up.lineage(CELL, ["food", "flags"], TOP1, ["faces"])
    for step, record in enumerate(lineage if measured else ()):
        pairs = [None, 100.0, 33.3333][step]
        record.metrics["compatibility"] = {
            "recall@1": RECALL[step], "recall@5": RECALL[step], "drop": None if step == 0 else float(step),
            "pairs": step, "compatible": pairs,
        }  # fmt: skip
    return tidy.table({CELL: lineage}, {})


def test_each_recall_is_a_row_of_the_table() -> None:
    found = table()
    rows = found[(found["metric"] == "gallery_recall@1:1") & (found["step"] == 2)]
    assert dict(zip(rows["dataset"], rows["value"], strict=True)) == {"food": 40.0, "faces": 60.0}
    assert found[found["metric"] == "compatibility_drop"]["value"].tolist() == [1.0, 2.0]
    assert found[found["metric"] == "compatible_pairs"]["step"].tolist() == [1, 2]


def test_the_matrix_has_means_and_frames_what_is_worse() -> None:
    drawn = compatibility.draw(table(), "demo")
    assert drawn
    assert "33 % of the pairs of states are compatible." in drawn.caption
    specification = drawn.specification(standalone=True)
    assert [panel["title"] for panel in specification["concat"]] == ["recall@1", "recall@5"]
    [rows] = {str(one): one for one in specification["datasets"].values() if "gallery" in one[0]}.values()
    cells = {(row["step"], row["gallery"]): row for row in rows}
    assert {place: row["value"] for place, row in cells.items()} == {
        (0, 0): 50, (1, 0): 51, (1, 1): 56, (2, 0): 40, (2, 1): 50, (2, 2): 56
    }  # fmt: skip
    assert {place for place, row in cells.items() if row["worse"]} == {(2, 0), (2, 1)}


def test_it_is_not_drawn_without_galleries() -> None:
    assert "compatibility" not in [figure.name for figure in figures.draw(table(measured=False), Vectors())]
    assert "compatibility" in [figure.name for figure in figures.draw(table(), Vectors())]
