"""Routed deployments: what a better router could reach, how often it is right, and where images go."""

from __future__ import annotations

import altair as alt
import pandas as pd

from tasks.report.figures.figure import BARE, INK, OKABE_ITO, Chart, Figure, data

PREFIX = "routed_to:"
"""Of metrics of the tidy table: ``routed_to:ROUTE``, percent of a set's images."""
_RIGHT = "routing_accuracy:"
"""Of another: ``routing_accuracy:ROUTE``, of a set and its own expert."""
_LINES = {
    "A_KA": ("A_KA by route", OKABE_ITO["blue"]),
    "oracle_A_KA": ("A_KA by the oracle", OKABE_ITO["black"]),
    "routing_accuracy": ("routing accuracy", OKABE_ITO["orange"]),
}
"""Metric → what it is called, and its colour."""
_TEXT_FITS = 12
"""Routes up to which the numbers are written into the rectangles."""


def draw(table: pd.DataFrame, timeline: str) -> Figure | None:
    """Lines over steps, and a heat map of the last step of one timeline; None where it routes nothing."""
    own = table[table["timeline"] == timeline]
    went = own[own["metric"].str.startswith(PREFIX)]
    if went.empty:
        return None
    went = went[went["step"] == went["step"].max()]
    caption = (
        "Left: A_KA as images are routed, and with the expert of each set's own arrival, whatever the router says: an"
        " upper bound. The routing accuracy is the mean over the sets whose arrival has come. Right: percent of each"
        " set's images that go to an expert, at the last step; framed is the set's own."
    )
    chart = alt.concat(_lines(own), _shares(went, own), columns=2).resolve_scale(color="independent")
    return Figure("routing", "Routes", caption, chart, 60)


def _lines(own: pd.DataFrame) -> Chart:
    first = own[own["metric"] == "oracle_A_KA"]["step"].min()
    means = own[own["metric"].isin(_LINES) & (own["dataset"] == "") & (own["step"] >= first)]
    means = means.assign(what=means["metric"].map(lambda name: _LINES[name][0]))
    names, colors = zip(*_LINES.values(), strict=True)
    color = alt.Color("what:N", title=None, scale=alt.Scale(domain=names, range=colors))
    tooltip = [
        alt.Tooltip("what:N"), alt.Tooltip("step:O"), alt.Tooltip("arrival:N"),
        alt.Tooltip("value:Q", title="%", format=".2f"),
    ]  # fmt: skip
    chart = alt.Chart(data(means, "what", "step", "arrival", "value")).encode(
        x=alt.X("step:O", title="time step", axis=alt.Axis(labelAngle=0, grid=False)),
        y=alt.Y("value:Q", title="%", scale=alt.Scale(zero=False)), color=color, tooltip=tooltip,
    )  # fmt: skip
    return (chart.mark_line(strokeWidth=2) + chart.mark_point(filled=True, size=45)).properties(width=330, height=260)


def _shares(went: pd.DataFrame, own: pd.DataFrame) -> Chart:
    last = own[own["step"] == went["step"].max()]
    right = last[last["metric"].str.startswith(_RIGHT)]
    cells = went.assign(route=went["metric"].str.removeprefix(PREFIX))
    pairs = set(zip(right["dataset"], right["metric"].str.removeprefix(_RIGHT), strict=True))
    cells["own"] = [pair in pairs for pair in zip(cells["dataset"], cells["route"], strict=True)]
    sets, routes = list(dict.fromkeys(cells["dataset"])), list(dict.fromkeys(cells["route"]))
    tooltip = [
        alt.Tooltip("dataset:N", title="set"), alt.Tooltip("route:N"), alt.Tooltip("value:Q", title="%", format=".1f")
    ]  # fmt: skip
    chart = alt.Chart(data(cells, "dataset", "route", "value", "own")).encode(
        x=alt.X("route:N", title="expert", sort=routes, axis=alt.Axis(labelAngle=-40, **BARE)),
        y=alt.Y("dataset:N", title=None, sort=sets, axis=alt.Axis(**BARE)),
    )
    color = alt.Color("value:Q", scale=alt.Scale(scheme="viridis", domain=[0, 100]), legend=None)
    layers = [chart.mark_rect(stroke="white", strokeWidth=1).encode(color=color, tooltip=tooltip)]
    if len(routes) <= _TEXT_FITS:
        ink = alt.when("datum.value > 50").then(alt.value(INK)).otherwise(alt.value("white"))
        layers.append(chart.mark_text(fontSize=11).encode(text=alt.Text("value:Q", format=".0f"), color=ink))
    frame = chart.transform_filter("datum.own").mark_rect(filled=False, stroke=OKABE_ITO["vermillion"], strokeWidth=2)
    return alt.layer(*layers, frame.encode(tooltip=tooltip)).properties(
        width=max(120, 34 * len(routes)), height=max(120, 24 * len(sets))
    )
