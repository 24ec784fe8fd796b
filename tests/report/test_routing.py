"""Rows and figure of routed deployments."""

from __future__ import annotations

from typing import Any

from tasks.grid.cells import Cell
from tasks.report import figures, tidy
from tasks.report.figures import routing
from tasks.report.vectors import Vectors
from tests.report import made_up

CELL = Cell("demo", "zs", "routed", "", 0)
TOP1 = [{"food": 10.0, "faces": 60.0}, {"food": 50.0, "faces": 58.0}, {"food": 40.0, "faces": 55.0}]
IMAGES = [
    {"food": {"food": 3, "base": 1}, "faces": {"base": 4}},
    {"food": {"food": 2, "flags": 2}, "faces": {"base": 4}},
]


def table(*, routed: bool = True) -> Any:
    lineage = made_up.lineage(CELL, ["food", "flags"], TOP1, ["faces"])
    for step, images in enumerate(IMAGES if routed else (), start=1):
        right = 25.0 * images["food"]["food"]
        lineage[step].metrics["routing"] = {
            "images": images, "expert": {"food": "food"}, "accuracy": {"food": right}, "mean_accuracy": right,
            "oracle": {"food": 60.0}, "oracle_A_KA": 60.0,
        }  # fmt: skip
    return tidy.table({CELL: lineage}, {})


def test_each_share_is_a_row_of_the_table_zeros_too() -> None:
    found = table()
    last = found[(found["step"] == 2) & found["metric"].str.startswith("routed_to:")]
    rows = {(row.dataset, row.metric): row.value for row in last.itertuples()}
    assert rows["food", "routed_to:flags"] == rows["food", "routed_to:food"] == 50
    assert rows["faces", "routed_to:base"] == 100
    assert rows["faces", "routed_to:food"] == 0
    assert found[found["metric"] == "routing_accuracy"]["value"].tolist() == [75, 50]
    assert found[found["metric"] == "routing_accuracy:food"]["dataset"].tolist() == ["food", "food"]
    assert found[found["metric"] == "oracle_A_KA"]["step"].tolist() == [1, 2]


def test_the_figure_has_lines_from_the_first_route_on_and_frames_a_sets_own_expert() -> None:
    drawn = routing.draw(table(), "demo")
    assert drawn
    specification = drawn.specification(standalone=True)
    data = list(specification["datasets"].values())
    [lines] = [rows for rows in data if "what" in rows[0]]
    assert {(row["what"], row["step"]): row["value"] for row in lines} == {
        ("A_KA by route", 1): 21, ("A_KA by route", 2): 22, ("A_KA by the oracle", 1): 60,
        ("A_KA by the oracle", 2): 60, ("routing accuracy", 1): 75, ("routing accuracy", 2): 50,
    }  # fmt: skip
    [cells] = [rows for rows in data if "route" in rows[0]]
    assert [(row["dataset"], row["route"]) for row in cells if row["own"]] == [("food", "food")]
    assert len(cells) == 6


def test_it_is_not_drawn_without_routes() -> None:
    assert "routing" not in [figure.name for figure in figures.draw(table(routed=False), Vectors())]
    assert "routing" in [figure.name for figure in figures.draw(table(), Vectors())]
