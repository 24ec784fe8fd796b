"""Means over seeds, and factors compared over equal settings."""

import math

import pandas as pd
import pytest

from tasks.report import facts, markdown, summary
from tasks.report.metrics import t_quantile
from tasks.report.tidy import COLUMNS


def table(*rows: tuple[str, str, str, int, int, float], **same: str) -> pd.DataFrame:
    """A tidy table of geometric means: init, deploy, technique, seed, step, value."""
    full = [
        {
            "timeline": f"{init}-{deploy}-{technique}-{seed}{same.get('variant', '')}", "init": init, "deploy": deploy,
            "technique": technique, "seed": seed, "variant": same.get("variant", ""),
            "reference": same.get("reference", ""), "step": step, "arrival": f"a{step}", "tag": "",
            "metric": "geometric_mean", "dataset": "", "role": "", "value": value,
        }
        for init, deploy, technique, seed, step, value in rows
    ]  # fmt: skip
    return pd.DataFrame(full, columns=COLUMNS)


def test_mean_and_interval_over_seeds() -> None:
    found = summary.over_seeds(
        table(("ema", "ema", "ties", 0, 1, 10.0), ("ema", "ema", "ties", 1, 1, 14.0)), ["geometric_mean"]
    )
    row = found.iloc[0]
    assert (row["mean"], row["seeds"], row["arrival"]) == (12.0, 2, "a1")
    half = t_quantile(1) * math.sqrt(8) / math.sqrt(2)
    assert (row["low"], row["high"]) == pytest.approx((12 - half, 12 + half))


def test_one_seed_has_a_mean_and_no_interval() -> None:
    row = summary.over_seeds(table(("ema", "ema", "ties", 0, 1, 10.0)), ["geometric_mean"]).iloc[0]
    assert row["mean"] == 10
    assert math.isnan(row["half"])


def test_a_cell_that_has_not_finished_is_not_among_the_final_ones() -> None:
    found = summary.final(
        table(("ema", "ema", "x", 0, 1, 1.0), ("ema", "ema", "x", 0, 2, 2.0), ("ema", "all", "x", 0, 1, 3.0))
    )
    assert found["value"].tolist() == [2.0]


def test_each_variant_ends_at_its_own_last_step() -> None:
    both = pd.concat([
        table(("ema", "ema", "x", 0, 4, 1.0), variant="long"), table(("ema", "ema", "x", 0, 2, 2.0), variant="short")
    ])  # fmt: skip
    assert summary.final(both)["value"].tolist() == [1.0, 2.0]


def test_levels_are_compared_over_settings_that_all_of_them_have() -> None:
    """Deploying ft is bad, and zs has no such cell: that must not make zs look good."""
    values = {"ft": 0.0, "ema": 10.0, "all": 8.0}
    rows = [
        (init, deploy, "" if (init, deploy) == ("ft", "ft") else technique, 0, 1, value + (5 if init == "ema" else 0))
        for init in ("zs", "ft", "ema")
        for deploy, value in values.items()
        for technique in ("linear", "ties")
        if (init, deploy) != ("zs", "ft")
    ]
    found = summary.effects(table(*dict.fromkeys(rows)), "geometric_mean").set_index(["factor", "level"])["difference"]
    assert found["init", "zs"] == found["init", "ft"] == pytest.approx(-5 / 3)
    assert found["init", "ema"] == pytest.approx(10 / 3)
    assert found["deploy", "ema"] - found["deploy", "ft"] == pytest.approx(10)
    assert found["technique", "linear"] == found["technique", "ties"] == 0


def test_differences_are_within_seeds() -> None:
    """What a seed's base adds to all its cells does not widen the interval."""
    rows = [
        ("ema", deploy, "x", seed, 1, base + gain)
        for seed, base in enumerate((0.0, 30.0, 60.0))
        for deploy, gain in (("ema", 2.0), ("all", 0.0))
    ]
    found = summary.effects(table(*rows), "geometric_mean").set_index("level")
    assert found.loc["ema", "difference"] == 1
    assert found.loc["ema", "half"] == pytest.approx(0)
    assert found.loc["ema", "seeds"] == 3


def test_cells_that_differ_in_nothing_have_no_effects() -> None:
    assert summary.effects(table(("ema", "ema", "x", 0, 1, 1.0)), "geometric_mean").empty


def test_the_best_cell_is_that_of_the_best_mean() -> None:
    found = summary.best_cell(
        table(
            ("zs", "all", "x", 0, 1, 40.0), ("zs", "all", "x", 1, 1, 10.0),
            ("ema", "ema", "x", 0, 1, 30.0), ("ema", "ema", "x", 1, 1, 28.0),
        )
    )  # fmt: skip
    assert found["cell"] == "ema + ema, x"
    assert found["mean"] == 29


def test_titles() -> None:
    one, two = table(("ema", "ema", "x", 0, 1, 1.0)), table(("ema", "ema", "x", 1, 1, 1.0))
    assert facts.title(one) == "ema-ema-x-0"
    assert facts.title(pd.concat([one, two])) == "ema-ema-x: 2 timelines"


def test_markdown_has_a_row_for_each_cell_and_each_effect() -> None:
    from tests.report import synthetic

    made = synthetic.table(("linear", "ties"), 2, 3)
    cells = markdown.cells(made)
    assert len(cells) == 7 * 2 + 1 + 2  # seven protocols merge, ft + ft does not, and two references
    assert next(c for c in cells if c["cell"] == "multitask")["step"] == 1
    text = markdown.summary(made)
    assert "| best cell |" in text
    assert "| technique | ties |" in text


def clocked(*steps: tuple[str, float, float]) -> pd.DataFrame:
    """Tag, seconds on the clock, and when that ended."""
    rows = [
        {"tag": tag, "metric": metric, "value": value}
        for tag, elapsed, at in steps
        for metric, value in (("elapsed", elapsed), ("recorded_at", at))
    ]
    return pd.DataFrame(rows)


def test_steps_side_by_side_count_once_on_the_clock_and_pauses_not_at_all() -> None:
    side_by_side = clocked(("a/0", 10.0, 110.0), ("b/0", 6.0, 112.0), ("a/1", 3.0, 113.0))
    assert summary.on_the_clock(side_by_side) == 14.0
    later = pd.concat([side_by_side, clocked(("a/2", 5.0, 9000.0))])
    assert summary.on_the_clock(later) == 14.0 + 6.0


def test_states_that_do_not_say_when_they_ran_have_no_time_on_the_clock() -> None:
    old = pd.DataFrame([{"tag": "a/1", "metric": "seconds", "value": 3.0}])
    assert summary.on_the_clock(pd.concat([clocked(("a/0", 10.0, 110.0)), old])) is None
