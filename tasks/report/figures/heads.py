"""Heads: their accuracy against shots, over time, and what each has forgotten."""

from __future__ import annotations

import altair as alt
import pandas as pd

from tasks.report.figures.figure import OKABE_ITO, Chart, Figure, data
from tasks.scores import ROLES

PREFIX = "head:"
"""Of metrics of the tidy table: ``head:NAME@SHOTS``."""
FORGETTING = "head_forgetting:"
_COLORS = [OKABE_ITO[name] for name in ("blue", "vermillion", "green", "orange", "purple", "sky", "black", "grey")]
_SIZE = {"width": 290, "height": 230}


def draw(table: pd.DataFrame, timeline: str) -> Figure | None:
    """Three panels of one timeline; None where it has no heads."""
    own = table[table["timeline"] == timeline]
    heads = own[own["metric"].str.startswith(PREFIX)]
    if heads.empty:
        return None
    heads = heads.assign(series=heads["metric"].str.removeprefix(PREFIX))
    heads = heads.assign(head=heads["series"].str.rpartition("@")[0], shots=heads["series"].str.rpartition("@")[2])
    scale = alt.Scale(domain=list(heads["head"].unique()), range=_COLORS)
    color = alt.Color("head:N", scale=scale, legend=alt.Legend(title=None))
    panels = [_against_shots(heads, color), _over_time(heads, color), _forgotten(own, color)]
    caption = (
        "Top-1 in percent: mean over the adaptation sets that every head scores at that step, so that heads compare;"
        " a set is scored once all its classes have arrived. Over time, each head is at its largest number of shots."
    )
    shown = [panel for panel in panels if panel is not None]
    return Figure("heads", "Heads beside zero-shot", caption, alt.concat(*shown, columns=3), 60)


def comparable(heads: pd.DataFrame) -> pd.DataFrame:
    """Mean over the sets that all series score, at the steps at which each scores any.

    Columns: step, arrival, head, shots, value, and sets, the number of sets.
    """
    rows = heads[heads["role"] == ROLES[0]]
    series = rows.groupby("step")["series"].transform("nunique")
    of_set = rows.groupby(["step", "dataset"])["series"].transform("nunique")
    kept = rows[(of_set == series) & (series == series.max())]
    grouped = kept.groupby(["step", "arrival", "head", "shots"], sort=False)["value"]
    return grouped.agg(value="mean", sets="count").reset_index()


def _against_shots(heads: pd.DataFrame, color: alt.Color) -> Chart | None:
    """Accuracy against shots at the newest step; heads of all samples and zero-shot are rules."""
    means = comparable(heads[heads["step"] == heads["step"].max()])
    numbered = means[means["shots"].str.isdigit() & (means["shots"] != "0")]
    numbered = numbered.assign(shots=numbered["shots"].astype(int))
    rules = means.drop(numbered.index)
    if means.empty:
        return None
    tooltip = ["head:N", "shots:N", alt.Tooltip("value:Q", title="%", format=".2f"), alt.Tooltip("sets:Q")]
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False))
    layers: list[alt.Chart] = []
    if len(numbered):
        x = alt.X(
            "shots:Q", title="shots", scale=alt.Scale(type="log", base=2),
            axis=alt.Axis(values=sorted(set(numbered["shots"])), format="d"),
        )  # fmt: skip
        chart = alt.Chart(data(numbered, "head", "shots", "value", "sets"))
        layers += [
            chart.mark_line(strokeWidth=2).encode(x=x, y=y, color=color),
            chart.mark_point(filled=True, size=50, fillOpacity=1).encode(x=x, y=y, color=color, tooltip=tooltip),
        ]
    if len(rules):
        chart = alt.Chart(data(rules, "head", "shots", "value", "sets"))
        layers.append(chart.mark_rule(strokeDash=[5, 3], strokeWidth=1.5).encode(y=y, color=color, tooltip=tooltip))
    title = "against shots, at the last step (dashed: no shots, or all)"
    return alt.layer(*layers).properties(title=title, **_SIZE)


def _over_time(heads: pd.DataFrame, color: alt.Color) -> Chart | None:
    order = heads["shots"].map(lambda shots: 1 << 30 if shots == "all" else int(shots))
    largest = order.groupby(heads["head"]).transform("max")
    means = comparable(heads[order == largest])
    if means["step"].nunique() < 2:
        return None
    chart = alt.Chart(data(means, "step", "arrival", "head", "shots", "value", "sets")).encode(
        x=alt.X("step:Q", title="time step", axis=alt.Axis(tickMinStep=1, format="d")),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)), color=color,
    )  # fmt: skip
    tooltip = [
        "head:N", "shots:N", "step:Q", "arrival:N", alt.Tooltip("value:Q", title="%", format=".2f"), "sets:Q"
    ]  # fmt: skip
    points = chart.mark_point(filled=True, size=40, fillOpacity=1).encode(tooltip=tooltip)
    return alt.layer(chart.mark_line(strokeWidth=2), points).properties(title="over time", **_SIZE)


def _forgotten(own: pd.DataFrame, color: alt.Color) -> Chart | None:
    rows = own[own["metric"].str.startswith(FORGETTING)]
    rows = rows[rows["step"] == rows["step"].max()]
    if rows.empty:
        return None
    series = rows["metric"].str.removeprefix(FORGETTING)
    rows = rows.assign(head=series.str.rpartition("@")[0], shots=series.str.rpartition("@")[2])
    chart = alt.Chart(data(rows, "head", "shots", "value"))
    return (
        chart.mark_bar()
        .encode(
            x=alt.X("value:Q", title="percentage points"),
            y=alt.Y("head:N", title=None),
            color=color,
            tooltip=["head:N", "shots:N", alt.Tooltip("value:Q", title="points", format=".2f")],
        )
        .properties(title="forgotten by the last step", **_SIZE)
    )
