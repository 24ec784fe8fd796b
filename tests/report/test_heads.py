"""The figure of heads: only what compares is compared, and what is not scored is not drawn."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.grid.cells import Cell
from tasks.report import figures, tidy
from tasks.report.figures import heads
from tasks.report.vectors import Vectors
from tests.report import made_up

CELL = Cell("demo", "ema", "ema", "linear", 0)
TOP1 = [
    {"food": 10.0, "flags": 20.0, "faces": 60.0},
    {"food": 50.0, "flags": 22.0, "faces": 58.0},
    {"food": 40.0, "flags": 70.0, "faces": 55.0},
]


def scored(top1: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {"features": "base", "top1": top1, "A_KA": {}, "A_ZS": {}}


GDA = [{"faces": 61.0}, {"food": 60.0, "faces": 61.0}, {"food": 58.0, "flags": 75.0, "faces": 61.0}]


def table() -> Any:
    lineage = made_up.lineage(CELL, ["food", "flags"], TOP1, ["faces"])
    for step, record in enumerate(lineage):
        record.metrics["heads"] = {
            "zeroshot": scored({"0": TOP1[step]}),
            "gda": scored({"1": {name: value - 9 for name, value in GDA[step].items()}, "16": GDA[step]}),
        }
    return tidy.table({CELL: lineage}, {})


def test_each_score_is_a_row_and_forgetting_is_at_the_largest_number_of_shots() -> None:
    found = table()
    rows = found[(found["metric"] == "head:gda@16") & (found["step"] == 2)]
    assert dict(zip(rows["dataset"], rows["value"], strict=True)) == GDA[2]
    forgotten = found[found["metric"].str.startswith("head_forgetting:") & (found["step"] == 2)]
    assert dict(zip(forgotten["metric"], forgotten["value"], strict=True)) == {
        "head_forgetting:zeroshot@0": 10.0, "head_forgetting:gda@16": 2.0
    }  # fmt: skip


def test_means_are_over_the_sets_that_every_head_scores() -> None:
    found = table()
    rows = found[found["metric"].str.startswith("head:")]
    rows = rows.assign(series=rows["metric"], head=rows["metric"], shots="1")
    means = heads.comparable(rows).set_index(["step", "head"])
    assert 0 not in means.index.get_level_values("step")  # zero-shot alone scores adaptation sets there
    assert means.loc[(1, "head:zeroshot@0"), "value"] == 50  # food alone: flags have not arrived
    assert means.loc[(2, "head:gda@16"), "value"] == pytest.approx((58 + 75) / 2)
    assert means["sets"].tolist() == [1, 1, 1, 2, 2, 2]


def test_the_figure_is_there_with_heads_alone() -> None:
    drawn = {figure.name: figure for figure in figures.draw(table(), Vectors())}
    specification = drawn["heads"].specification(standalone=True)
    assert [panel["title"] for panel in specification["concat"]] == [
        "against shots, at the last step (dashed: no shots, or all)", "over time", "forgotten by the last step"
    ]  # fmt: skip
    plain = tidy.table({CELL: made_up.lineage(CELL, ["food", "flags"], TOP1, ["faces"])}, {})
    assert "heads" not in [figure.name for figure in figures.draw(plain, Vectors())]
