"""A figure: a chart, what stands around it on the page, and the style that all share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import altair as alt
import pandas as pd

Chart = alt.Chart | alt.LayerChart | alt.FacetChart | alt.ConcatChart | alt.VConcatChart


@dataclass(frozen=True)
class Figure:
    """One figure of the report."""

    name: str
    """Of its files, and its address on the page."""
    title: str
    caption: str
    """A sentence or two: how to read it, and what it says."""
    chart: Chart
    margin: int
    """Pixels that axes and labels take of each panel's width."""
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Parameter of the chart → the values it may take, the default first; the page shows a menu for each."""
    toggles: tuple[str, ...] = ()
    """Selections of the chart's legends, which figures share by name."""

    def specification(self, *, standalone: bool) -> dict[str, Any]:
        """The Vega-Lite specification; with its title in it where it stands alone."""
        return {key: value for key, value in self._described.items() if standalone or key != "title"}

    @cached_property
    def _described(self) -> dict[str, Any]:
        """What `specification` gives, made once: altair takes 50 to 100 ms to make and to check it."""
        with alt.data_transformers.enable("default", max_rows=None):
            described: dict[str, Any] = self.chart.properties(title=self.title).configure(**STYLE).to_dict()
        return described


OKABE_ITO = {
    "black": "#000000", "orange": "#E69F00", "sky": "#56B4E9", "green": "#009E73", "yellow": "#F0E442",
    "blue": "#0072B2", "vermillion": "#D55E00", "purple": "#CC79A7", "grey": "#8A8A8A",
    "brown": "#7A4B12", "teal": "#3F9D9D",
}  # fmt: skip
"""Colours that colour-blind eyes tell apart (Okabe and Ito, 2008), a grey, a brown and a teal."""

INIT = {"zs": OKABE_ITO["blue"], "ft": OKABE_ITO["vermillion"], "ema": OKABE_ITO["green"]}
SHAPE: dict[str, str] = {"zs": "square", "ft": "triangle-up", "ema": "circle"}
DASH: dict[str, list[float]] = {"ft": [2, 3], "ema": [1, 0], "all": [7, 4], "routed": [9, 2, 2, 2]}

FONT = "Helvetica, Arial, sans-serif"
INK, FAINT = "#222222", "#767676"
STYLE: dict[str, Any] = {
    "background": "#ffffff",
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK, "titleColor": INK, "titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 12,
        "gridColor": "#e6e6e6", "domainColor": "#999999", "tickColor": "#999999",
    },
    "legend": {
        "orient": "bottom", "labelColor": INK, "titleColor": INK, "titleFontWeight": "normal", "labelFontSize": 12,
        "titleFontSize": 12, "symbolSize": 90, "labelLimit": 220,
    },
    "title": {"anchor": "start", "color": INK, "fontSize": 13, "fontWeight": "normal", "offset": 10},
    "header": {"labelColor": INK, "titleColor": INK},
}  # fmt: skip

BARE: dict[str, Any] = {"domain": False, "ticks": False, "labelFontSize": 12}
"""Of the axes of a heat map, whose rectangles are their own ticks."""


def data(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """What a chart needs of a table, rounded to what a reader can see."""
    return frame[list(columns)].round(4)


def interval(frame: pd.DataFrame) -> list[alt.Tooltip]:
    """Half the interval and the number of seeds, for tooltips, where there is more than one seed."""
    if frame["half"].isna().all():
        return []
    return [alt.Tooltip("half:Q", title="±", format=".2f"), alt.Tooltip("seeds:Q")]


def parameter(choices: Mapping[str, Sequence[str]]) -> list[alt.Parameter]:
    """The chart's parameters for a figure's choices, each at its default."""
    return [alt.param(name=name, value=values[0]) for name, values in choices.items()]


def legend_toggle(column: str) -> alt.Parameter:
    """A selection that the legend of a column toggles: a click shows that value alone, more clicks add others."""
    return alt.selection_point(name=f"{column}_shown", fields=[column], bind="legend", toggle="true")
