"""What the values of a fitted setting scored on held-out samples, step by step, and which one was taken."""

from __future__ import annotations

import altair as alt
import pandas as pd

from tasks.report.figures.figure import INK, OKABE_ITO, Chart, Figure, data
from tasks.scores import MEANS

PREFIX = "fit:"
"""Of metrics of the tidy table: ``fit:A_KA``."""
CHOSEN = "fit_value"
_COLORS = [OKABE_ITO[name] for name in ("vermillion", "blue", "black")]


def draw(table: pd.DataFrame, timeline: str) -> Figure | None:
    """One panel a step of one timeline; None where nothing was fitted."""
    own = table[table["timeline"] == timeline]
    curves = own[own["metric"].str.startswith(PREFIX)]
    if curves.empty:
        return None
    curves = curves.assign(score=curves["metric"].str.removeprefix(PREFIX), tried=curves["dataset"].astype(float))
    taken = own[own["metric"] == CHOSEN]
    setting = str(taken["dataset"].iloc[0])
    color = alt.Color("score:N", scale=alt.Scale(domain=list(MEANS), range=_COLORS), legend=alt.Legend(title=None))
    y = alt.Y("value:Q", title="%", scale=alt.Scale(zero=False))
    panels: list[Chart] = []
    for step, each in curves.groupby("step"):
        tooltip = ["score:N", alt.Tooltip("tried:Q", title=setting), alt.Tooltip("value:Q", format=".2f")]
        chart = alt.Chart(data(each, "score", "tried", "value"))
        x = alt.X("tried:Q", title=setting)
        rule = alt.Chart(data(taken[taken["step"] == step].rename(columns={"value": "tried"}), "tried"))
        layers = [
            rule.mark_rule(color=INK, strokeDash=[4, 3]).encode(x=x),
            chart.mark_line(strokeWidth=2).encode(x=x, y=y, color=color),
            chart.mark_point(filled=True, size=40, fillOpacity=1).encode(x=x, y=y, color=color, tooltip=tooltip),
        ]
        arrival = str(each["arrival"].iloc[0])
        panels.append(alt.layer(*layers).properties(title=f"{step}: {arrival}", width=290, height=200))
    caption = (
        f"Scores on held-out samples of models merged with each {setting} that was tried; the dashed line is the one "
        "that was taken. Accumulation is over the arrivals' pools, retention over the pretraining pool."
    )
    return Figure("fit", f"How {setting} was chosen", caption, alt.concat(*panels, columns=3), 60)
