"""Which initialization, which deployment, which technique: how much each moves the final geometric mean."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from tasks.report.figures.figure import FAINT, OKABE_ITO, Chart, Figure, data, interval
from tasks.report.summary import DEPLOYS, INITS, effects

LEAST = 0.1
"""Points to either side at least: cells that score alike have an axis too."""
_TITLES = {"init": "initialize", "deploy": "deploy", "technique": "technique"}
_ORDER = {"init": list(INITS), "deploy": list(DEPLOYS)}


def draw(table: pd.DataFrame) -> Figure | None:
    """Dots with 95 % intervals; None where cells differ in nothing."""
    sizes = effects(table, "geometric_mean")
    if sizes.empty:
        return None
    sizes["low"], sizes["high"] = sizes["difference"] - sizes["half"], sizes["difference"] + sizes["half"]
    reach = pd.concat([sizes["difference"], sizes["low"], sizes["high"]]).abs().max()
    edges = max(reach * 1.08, LEAST)
    axis = {
        "title": "points from the average", "scale": alt.Scale(domain=[-edges, edges], nice=False),
        "axis": alt.Axis(format="+~r", tickCount=5),
    }  # fmt: skip
    panels = [_panel(each, str(factor), axis) for factor, each in sizes.groupby("factor", sort=False)]
    ranges = sizes.groupby("factor", sort=False)["difference"].agg(lambda each: each.max() - each.min())
    spread = ", ".join(f"{_TITLES[str(factor)]} {width:.1f}" for factor, width in ranges.items())
    caption = f"Final geometric mean, like compared with like. Best against worst, in points: {spread}."
    return Figure("what-mattered", "What mattered", caption, alt.concat(*panels, columns=3), 86)


def _panel(sizes: pd.DataFrame, factor: str, axis: dict[str, Any]) -> Chart:
    x = alt.X("difference:Q", **axis)
    y = alt.Y("level:N", title=None, sort=_ORDER.get(factor, list(sizes["level"])), axis=alt.Axis(labelFontSize=12))
    tooltip = [
        alt.Tooltip("level:N", title=_TITLES[factor]), alt.Tooltip("mean:Q", title="geometric mean", format=".2f"),
        alt.Tooltip("difference:Q", format="+.2f"), *interval(sizes),
    ]  # fmt: skip
    chart = alt.Chart(data(sizes, "level", "mean", "difference", "half", "low", "high", "seeds")).encode(x=x, y=y)
    zero = alt.Chart(pd.DataFrame({"difference": [0]})).mark_rule(color=FAINT, strokeDash=[2, 2]).encode(x=x)
    whiskers = chart.mark_rule(strokeWidth=2.5, color=OKABE_ITO["blue"]).encode(x=alt.X("low:Q", **axis), x2="high:Q")
    dots = chart.mark_point(size=110, filled=True, color=OKABE_ITO["blue"], opacity=1).encode(tooltip=tooltip)
    return alt.layer(zero, whiskers, dots).properties(title=_TITLES[factor], width=270, height=34 * len(sizes) + 10)
