"""Where time and bytes went: seconds and bytes of each node at each step, each run counted once."""

from __future__ import annotations

import altair as alt
import pandas as pd

from tasks.report.figures.figure import OKABE_ITO, Figure, data, legend_toggle
from tasks.report.ledger import INPUTS
from tasks.report.summary import spent
from tasks.units import duration

_COLORS = {
    INPUTS: "grey", "prepare": "sky", "prepare-evaluation": "yellow", "initialize": "purple", "train": "vermillion",
    "measure": "black", "fit": "brown", "deploy": "green", "evaluate": "blue", "heads": "orange",
    "compatibility": "teal",
}  # fmt: skip
"""Nodes in the order in which they run."""
_OPTIONAL = ("fit", "heads", "compatibility")
"""Nodes that not every timeline has."""


def draw(table: pd.DataFrame) -> Figure:
    """Stacked bars over steps, seconds beside megabytes."""
    costs = spent(table)
    shown = legend_toggle("node")
    panels = [
        _panel(costs[costs["what"] == "seconds"], "seconds", ".1f", shown),
        _panel(costs[costs["what"] == "megabytes"], "megabytes written", ".2f", shown),
    ]
    panels[0] = panels[0].add_params(shown)  # of one view, and heard by both
    caption = "Wall time of the nodes, without recording, and what they wrote."
    saved = costs[(costs["what"] == "seconds")]["saved"].sum()
    if saved >= 1:
        caption += f" Each run counts once; taking finished ones again saved {duration(saved)}."
    chart = alt.concat(*panels, columns=2)
    return Figure("time-and-bytes", "Where time and bytes went", caption, chart, 60, toggles=(shown.name,))


def _panel(costs: pd.DataFrame, title: str, digits: str, shown: alt.Parameter) -> alt.Chart:
    nodes = set(costs["node"])
    colors = {name: color for name, color in _COLORS.items() if name not in _OPTIONAL or name in nodes}
    order = {name: index for index, name in enumerate(colors)}
    scale = alt.Scale(domain=list(colors), range=[OKABE_ITO[name] for name in colors.values()])
    shown_data = data(costs.assign(order=costs["node"].map(order)), "step", "node", "value", "order")
    chart = alt.Chart(shown_data).mark_bar(stroke="white", strokeWidth=0.5)
    return chart.encode(
        x=alt.X("step:O", title="time step", axis=alt.Axis(labelAngle=0)), y=alt.Y("value:Q", title=None),
        color=alt.Color("node:N", scale=scale, legend=alt.Legend(title=None, values=list(colors))),
        order="order:Q", opacity=alt.when(shown).then(alt.value(1)).otherwise(alt.value(0.08)),
        tooltip=["step:O", "node:N", alt.Tooltip("value:Q", title=title, format=digits)],
    ).properties(title=title, width=470, height=260)  # fmt: skip
