"""Which figures there are for which tables, and what they hold; without drawing any."""

import json

import pandas as pd

from tasks.report import figures
from tasks.report.figures import NAMES, Figure, effects, heat_map, over_time
from tasks.report.summary import over_seeds
from tasks.report.vectors import Vectors
from tests.report import synthetic


def names(drawn: list[Figure]) -> list[str]:
    return [figure.name for figure in drawn]


def test_a_grid_has_every_figure_and_each_is_valid() -> None:
    table = synthetic.with_fit(synthetic.with_heads(synthetic.table(("linear", "ties"), 2, 3)))
    drawn = figures.draw(synthetic.with_routes(synthetic.with_galleries(table)), synthetic.vectors(3))
    assert names(drawn) == list(NAMES)
    for figure in drawn:
        assert figure.specification(standalone=True)["title"] == figure.title  # altair validates it


def test_one_timeline_has_no_comparison() -> None:
    table = synthetic.table(("linear",), 1, 3, ("ema+ema",), with_references=False)
    assert names(figures.draw(table, Vectors())) == ["over-time", "plane", "steps-datasets", "time-and-bytes"]


def test_a_base_alone_has_nothing_over_time() -> None:
    table = synthetic.table(("linear",), 1, 3, ("ema+ema",), with_references=False)
    assert names(figures.draw(table[table["step"] == 0], Vectors())) == ["steps-datasets", "time-and-bytes"]


def values(specification: object) -> list[dict[str, object]]:
    """All data of a specification."""
    found = []
    for rows in json.loads(json.dumps(specification))["datasets"].values():
        found += rows
    return found


def test_what_merges_nothing_stands_under_every_technique() -> None:
    drawn = heat_map.draw(synthetic.table(("linear", "ties"), 1, 2))
    assert drawn
    rows = [row for row in values(drawn.specification(standalone=False)) if row["protocol"] == "ft + ft"]
    assert [row["technique"] for row in rows] == ["linear", "ties"]
    assert rows[0]["mean"] == rows[1]["mean"]


def test_variants_are_a_choice_and_have_references_of_their_own() -> None:
    one = synthetic.table(("linear", "ties"), 1, 2)
    other = one.assign(variant="short", timeline=one["timeline"] + "-short", tag=one["tag"] + "-short")
    drawn = over_time.draw(pd.concat([one, other]), "ties")
    assert drawn
    assert drawn.choices == {"technique": ["ties", "linear"], "variant": ["", "short"]}
    labels = [row for row in values(drawn.specification(standalone=False)) if row.get("label") == "multitask"]
    assert {row["variant"] for row in labels} == {"", "short"}


def test_a_reference_far_below_all_cells_leaves_them_the_plane() -> None:
    table = synthetic.table(("linear",), 2, 3)
    lost = (table["reference"] == "no-replay") & table["metric"].isin(["A_KA", "A_ZS"])
    table.loc[lost, "value"] = 1.5
    drawn = {figure.name: figure for figure in figures.draw(table, Vectors())}
    points = {row["label"]: row for row in values(drawn["plane"].specification(standalone=True)) if "label" in row}
    assert {"base", "multitask", "no replay (1.5, 1.5)"} <= points.keys()
    assert float(str(points["no replay (1.5, 1.5)"]["A_KA"])) > 5  # at the edge


def test_bands_of_few_seeds_do_not_flatten_the_lines() -> None:
    """Two seeds that differ by 20 points have a 95 % interval of ± 127."""
    table = synthetic.table(("linear",), 2, 4)
    far = (table["metric"] == "A_KA") & (table["init"] == "ema") & (table["reference"] == "") & (table["seed"] == 1)
    table.loc[far, "value"] += 20.0
    figure = over_time.draw(table, "linear")
    assert figure
    panel = figure.specification(standalone=False)["concat"][0]
    domains = [
        layer["encoding"]["y"]["scale"]["domain"] for layer in panel["layer"] if "scale" in layer["encoding"]["y"]
    ]
    means = over_seeds(table[table["metric"] == "A_KA"], ["A_KA"])["mean"]
    for low, high in domains:
        assert 0 <= low <= means.min()
        assert means.max() <= high <= 100
        assert means.max() - means.min() >= (high - low) / 2 - 1e-9
    assert "3 are wider than their panel and are left out" in figure.caption


def test_ticks_are_plain_numbers() -> None:
    chart = effects.draw(synthetic.table(("linear", "ties"), 2, 3))
    assert chart
    assert '"format": "+~r"' in json.dumps(chart.specification(standalone=False))


def test_cells_that_score_alike_have_an_axis() -> None:
    table = synthetic.table(("linear", "ties"), 2, 3)
    chart = effects.draw(table.assign(value=50.0))
    assert chart
    assert '"domain": [-0.1, 0.1]' in json.dumps(chart.specification(standalone=False))
