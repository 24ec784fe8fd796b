"""The accumulation–retention plane: where each cell's path leads, among the points it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from tasks.report.figures.figure import FAINT, INK, Figure, data, parameter
from tasks.report.figures.labels import spread_groups, to_the_left
from tasks.report.figures.series import Look, choices, chosen, of_variant
from tasks.report.summary import REFERENCES, everywhere, last_step, named, over_seeds, techniques
from tasks.scores import MEANS

_WIDTH, _HEIGHT = 680, 460
_GAP, _LABEL = 14, 75
"""Pixels between labels, and from a point to the end of its label; a phone's chart is half as wide."""

_KEYS = ["protocol", "cell", "init", "deploy", "technique", "variant", "reference", "step", "arrival"]

_SHOWN = (
    "cell", "protocol", "init", "deploy", "technique", "variant", "step", "arrival", *MEANS,
    "A_KA_low", "A_KA_high", "A_ZS_low", "A_ZS_high", "end",
)  # fmt: skip


def draw(table: pd.DataFrame, best: str) -> Figure | None:
    """A_KA against A_ZS, means over seeds; None where there is but one step."""
    if last_step(table) < 1:
        return None
    means = named(over_seeds(table, ["A_KA", "A_ZS"]))
    wide = means.pivot(index=_KEYS, columns="metric", values=["mean", "low", "high"])
    wide.columns = ["_".join(reversed(column)) for column in wide.columns.to_flat_index()]
    wide = wide.reset_index().rename(columns={"A_KA_mean": "A_KA", "A_ZS_mean": "A_ZS"})
    wide["geometric_mean"] = np.sqrt(wide["A_KA"] * wide["A_ZS"])
    wide["end"] = wide["step"] == wide.groupby("cell")["step"].transform("max")
    menus = choices(means, best)
    look = Look(means)
    wide, seen = _within(wide)
    chart = alt.layer(
        *_levels(seen), *_references(wide, seen, of_variant(menus)), *_paths(wide, seen, look, chosen(menus))
    )  # fmt: skip
    chart = chart.add_params(*parameter(menus)).properties(width=_WIDTH, height=_HEIGHT)
    caption = "Up and to the right is better; grey curves join equal geometric means. Each path starts at the base."
    return Figure("plane", "Accumulation against retention", caption, chart, 64, menus, look.names)


Seen = Mapping[str, tuple[float, float]]
"""The part of each axis that is shown."""


def _within(wide: pd.DataFrame) -> tuple[pd.DataFrame, Seen]:
    """What is shown of both axes: all cells, and the references that are not worse than every cell in both.

    One that is (training without replay can lose nearly all) is put at the edge, its numbers in its name, or there
    would be little room for the cells.
    """
    cells = wide[wide["reference"] == ""]
    least = cells[["A_KA", "A_ZS"]].min()
    far = (wide["reference"] != "") & (wide["A_KA"] < least["A_KA"]) & (wide["A_ZS"] < least["A_ZS"])
    numbers = wide["A_KA"].map(" ({:.1f}, ".format) + wide["A_ZS"].map("{:.1f})".format)
    seen = {
        name: _domain(wide.loc[~far & ((wide["reference"] == "") | wide["end"]), name]) for name in ("A_KA", "A_ZS")
    }
    edge = {name: wide[name].clip(*seen[name]) for name in seen}
    return wide.assign(**edge, numbers=numbers.where(far, "")), seen


def _axes(seen: Seen) -> tuple[alt.X, alt.Y]:
    x, y = (alt.Scale(domain=list(seen[name]), nice=False) for name in ("A_KA", "A_ZS"))
    axis = alt.Axis(grid=False, tickCount=8)
    return (
        alt.X("A_KA:Q", title="knowledge accumulation, A_KA (%)", scale=x, axis=axis),
        alt.Y("A_ZS:Q", title="zero-shot retention, A_ZS (%)", scale=y, axis=axis),
    )


def _domain(values: pd.Series[float]) -> tuple[float, float]:
    margin = max(0.08 * (values.max() - values.min()), 0.5)
    return max(0.0, float(values.min() - margin)), float(values.max() + margin)


def _levels(seen: Seen) -> list[alt.Chart]:
    """Curves of equal geometric mean through the visible part of the plane."""
    (left, right), (bottom, top) = seen["A_KA"], seen["A_ZS"]
    step = _round_step(np.sqrt(right * top) - np.sqrt(left * bottom))
    levels = np.arange(np.ceil(np.sqrt(left * bottom) / step), np.sqrt(right * top) / step) * step
    x = np.linspace(max(left, 1e-9), right, 60)
    curves = [pd.DataFrame({"A_KA": x, "A_ZS": level**2 / x, "level": level}) for level in levels]
    curve = pd.concat(curves)
    curve = curve[(curve["A_ZS"] >= bottom) & (curve["A_ZS"] <= top)]
    curve = curve[curve.groupby("level")["level"].transform("size") > 3]  # the others cross a corner
    x_axis, y_axis = _axes(seen)
    lines = alt.Chart(curve.round(4)).mark_line(color="#dddddd", strokeWidth=1)
    ends = alt.Chart(curve.sort_values("A_KA").groupby("level").tail(1).round(4))
    text = ends.mark_text(align="right", dx=-2, dy=-6, color="#9a9a9a", fontSize=10)
    lines = lines.encode(x=x_axis, y=y_axis, detail="level:N")
    return [lines, text.encode(x="A_KA:Q", y="A_ZS:Q", text=alt.Text("level:Q", format="~g"))]


def _round_step(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that about seven curves cross the plane."""
    raw = span / 7
    power = 10.0 ** np.floor(np.log10(raw))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw))


def _paths(wide: pd.DataFrame, seen: Seen, look: Look, keep: str) -> list[alt.Chart]:
    tooltip = [
        alt.Tooltip("cell:N", title="cell"), alt.Tooltip("step:Q"), alt.Tooltip("arrival:N"),
        *(alt.Tooltip(f"{name}:Q", format=".2f") for name in MEANS),
    ]  # fmt: skip
    x, y = _axes(seen)
    cells = alt.Chart(data(wide[wide["reference"] == ""], *_SHOWN)).transform_filter(keep).encode(x=x, y=y)
    ends = cells.transform_filter("datum.end")
    bars = ends.mark_rule(strokeWidth=1, clip=True).encode(color=look.color, opacity=look.opacity(0.6))
    shown = look.opacity(1)
    detail = alt.Detail(["technique:N", "variant:N"])
    return [
        cells.mark_line(strokeWidth=1.6).encode(
            color=look.color, strokeDash=look.dash, detail=detail, order="step:Q", opacity=look.opacity(0.75)
        ),
        cells.mark_point(filled=True, size=22).encode(
            color=look.color, shape=look.shape, opacity=shown, tooltip=tooltip
        ).add_params(*look.toggles),
        bars.encode(x="A_KA_low:Q", x2="A_KA_high:Q"),
        bars.encode(y="A_ZS_low:Q", y2="A_ZS_high:Q"),
        ends.mark_point(filled=True, size=150, stroke="white", strokeWidth=1).encode(
            color=look.color, shape=look.shape, opacity=shown, tooltip=tooltip
        ),
        *(_labels(wide, seen, look, keep) if wide["cell"].nunique() > 1 else [_arrivals(cells)]),
    ]  # fmt: skip


def _arrivals(path: alt.Chart) -> alt.Chart:
    """What arrived at each point of a path that is alone."""
    text = path.transform_filter("datum.step > 0").mark_text(dy=-11, fontSize=11, color=FAINT)
    return text.encode(text="arrival:N")


def _labels(wide: pd.DataFrame, seen: Seen, look: Look, keep: str) -> list[alt.Chart]:
    """The protocols at the ends of paths, on a halo, moved apart where they would lie on each other."""
    ends = wide[(wide["reference"] == "") & wide["end"]]
    if names := techniques(ends):
        ends = everywhere(ends, names)
    (left, right), (bottom, top) = seen["A_KA"], seen["A_ZS"]
    pixel = (top - bottom) / _HEIGHT
    place = spread_groups(ends, ["technique", "variant"], "A_ZS", _GAP * pixel, bottom + 8 * pixel, top - 8 * pixel)
    across = (ends["A_KA"] - left) / (right - left)
    sides = pd.Series(index=ends.index, dtype=bool)
    for _, group in ends.groupby(["technique", "variant"], sort=False, observed=True):
        rows = group.index
        sides[rows] = to_the_left(
            list(across[rows]), list(place[rows]), list(group["A_ZS"]), _LABEL / _WIDTH, _GAP * pixel
        )
    ends = ends.assign(A_ZS=place, to_the_left=sides)
    x, y = _axes(seen)
    chart = alt.Chart(
        data(ends, "A_KA", "A_ZS", "protocol", "init", "deploy", "technique", "variant", "to_the_left")
    ).transform_filter(keep).encode(x=x, y=y, text="protocol:N", opacity=look.opacity(1))  # fmt: skip
    styles: dict[str, dict[str, Any]] = {
        "!datum.to_the_left": {"align": "left", "dx": 11, "fontSize": 11},
        "datum.to_the_left": {"align": "right", "dx": -11, "fontSize": 11},
    }
    marks = []
    for side, style in styles.items():
        text = chart.transform_filter(side)
        marks.append(text.mark_text(stroke="white", strokeWidth=3, **style))
        marks.append(text.mark_text(**style).encode(color=look.color))
    return marks


def _references(wide: pd.DataFrame, seen: Seen, keep: str) -> list[alt.Chart]:
    """The base, and the last state of each reference."""
    start = wide[(wide["reference"] == "") & (wide["step"] == 0)]
    base = start.groupby("variant")[["A_KA", "A_ZS"]].mean().reset_index().assign(label="base")
    rest = wide[(wide["reference"] != "") & wide["end"]]
    rest = rest.assign(label=rest["reference"].map(REFERENCES) + rest["numbers"])
    points = pd.concat([base.assign(numbers=""), rest])
    chart = alt.Chart(data(points, "A_KA", "A_ZS", "label", "numbers", "variant")).transform_filter(keep)
    x, y = _axes(seen)
    chart = chart.encode(x=x, y=y)
    words = chart.encode(text="label:N")
    point = chart.mark_point(shape="diamond", size=130, color=INK, filled=True)
    return [
        point.encode(tooltip=["label:N", alt.Tooltip("A_KA:Q", format=".2f"), alt.Tooltip("A_ZS:Q", format=".2f")]),
        words.transform_filter("datum.numbers === ''").mark_text(dy=-13, color=FAINT, fontSize=11),
        words.transform_filter("datum.numbers !== ''").mark_text(dy=-8, dx=10, align="left", color=FAINT, fontSize=11),
    ]
