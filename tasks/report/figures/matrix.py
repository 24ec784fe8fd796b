"""The step × data-set matrix: what the deployed model can do on each data set after each step."""

from __future__ import annotations

import altair as alt
import pandas as pd

from tasks.report.figures.figure import BARE, INK, OKABE_ITO, Chart, Figure, data, interval, parameter
from tasks.report.figures.heat_map import ORDER
from tasks.report.figures.series import choices, chosen
from tasks.report.summary import named, over_seeds
from tasks.scores import ROLES

_TEXT_FITS = 14
"""Steps up to which the numbers are written into the rectangles."""

_SHOWN = ("dataset", "step", "mean", "half", "protocol", "technique", "variant", "arrives")


def draw(table: pd.DataFrame, best: str, best_protocol: str) -> Figure | None:
    """Two heat maps, adaptation above retention, of one cell that the reader chooses."""
    scores = named(over_seeds(table[table["reference"] == ""], ["score"]))
    menus = choices(scores, best)
    protocols = sorted(set(scores["protocol"]), key=lambda name: (name != best_protocol, ORDER.index(name)))
    if len(protocols) > 1:
        menus = {"protocol": protocols, **menus}
    scores["arrives"] = scores["arrival"] == scores["dataset"]
    domain = [float(scores["mean"].min()), float(scores["mean"].max())]
    panels = []
    for role in ROLES:
        each = scores[scores["role"] == role]
        if len(each):
            panels.append(_panel(each, role, chosen(menus), domain))
    chart = alt.vconcat(*panels, spacing=14).add_params(*parameter(menus))
    pairs = ", or recall@5 where there are no classes" if table["metric"].str.contains("recall@5").any() else ""
    caption = f"Top-1 of the deployed model after each step (%){pairs}. Frames show where a data set's arrival came."
    return Figure("steps-datasets", "Every data set at every step", caption, chart, 120, menus)


def _panel(scores: pd.DataFrame, role: str, keep: str, domain: list[float]) -> Chart:
    steps, sets = scores["step"].nunique(), list(scores["dataset"].unique())
    x = alt.X(
        "step:O",
        title="time step" if role == ROLES[-1] else None,
        axis=alt.Axis(labelAngle=0, **BARE),
    )
    y = alt.Y("dataset:N", sort=sets, title=role, axis=alt.Axis(**BARE))
    tooltip = [
        alt.Tooltip("dataset:N"), alt.Tooltip("step:O"), alt.Tooltip("mean:Q", title="%", format=".2f"),
        *interval(scores),
    ]  # fmt: skip
    chart = alt.Chart(data(scores, *_SHOWN)).transform_filter(keep).encode(x=x, y=y)
    color = alt.Color("mean:Q", scale=alt.Scale(scheme="viridis", domain=domain), legend=None)
    layers = [chart.mark_rect(stroke="white", strokeWidth=1).encode(color=color, tooltip=tooltip)]
    if steps <= _TEXT_FITS:
        ink = alt.when(f"datum.mean > {sum(domain) / 2}").then(alt.value(INK)).otherwise(alt.value("white"))
        layers.append(chart.mark_text(fontSize=11).encode(text=alt.Text("mean:Q", format=".0f"), color=ink))
    frame = chart.transform_filter("datum.arrives").mark_rect(
        filled=False, stroke=OKABE_ITO["vermillion"], strokeWidth=2.5
    )
    return alt.layer(*layers, frame.encode(tooltip=tooltip)).properties(width=760, height=26 * len(sets))
