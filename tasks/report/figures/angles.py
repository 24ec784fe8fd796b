"""How experts' task vectors lie to each other: cosines between all pairs, and their norms."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from tasks.report.figures.figure import BARE, INK, OKABE_ITO, Chart, Figure, parameter
from tasks.report.figures.series import chosen
from tasks.report.vectors import Experts, Vectors

_TEXT_FITS = 12
"""Experts up to which the cosines are written into the rectangles."""


def draw(vectors: Vectors) -> Figure | None:
    """A heat map of cosines beside bars of norms; None where no weights are here."""
    if not vectors.known:
        return None
    pairs = pd.concat([_pairs(experts) for experts in vectors.known])
    norms = pd.concat([_norms(experts) for experts in vectors.known])
    labels = [experts.label for experts in vectors.known]
    menus = {"experts": labels} if len(labels) > 1 else {}
    order = list(dict.fromkeys(pairs["arrival"]))
    chart = alt.concat(
        _cosines(pairs, order, chosen(menus)), _lengths(norms, order, chosen(menus)), columns=2
    ).add_params(*parameter(menus))  # fmt: skip
    caption = "Cosine between task vectors (expert minus base) of all pairs, and their norms. 0: nothing in common."
    return Figure("task-vectors", "Task vectors", caption, chart, 92, menus)


def _pairs(experts: Experts) -> pd.DataFrame:
    geometry = experts.geometry
    one, other = np.meshgrid(range(len(geometry.steps)), range(len(geometry.steps)), indexing="ij")
    names = np.array(geometry.arrivals)
    return pd.DataFrame({
        "experts": experts.label, "arrival": names[one.ravel()], "other": names[other.ravel()],
        "cosine": geometry.cosines.ravel(), "angle": geometry.angles.ravel(), "distance": geometry.distances.ravel(),
    })  # fmt: skip


def _norms(experts: Experts) -> pd.DataFrame:
    geometry = experts.geometry
    return pd.DataFrame({"experts": experts.label, "arrival": geometry.arrivals, "norm": geometry.norms})


def _cosines(pairs: pd.DataFrame, order: list[str], keep: str) -> Chart:
    chart = alt.Chart(pairs.round(4)).transform_filter(keep).encode(
        x=alt.X("other:N", sort=order, title=None, axis=alt.Axis(labelAngle=-40, **BARE)),
        y=alt.Y("arrival:N", sort=order, title=None, axis=alt.Axis(**BARE)),
    )  # fmt: skip
    lowest = min(0.0, float(pairs["cosine"].min()))
    color = alt.Color("cosine:Q", scale=alt.Scale(scheme="viridis", domain=[lowest, 1]), legend=None)
    numbers = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("cosine", "angle", "distance")]
    layers = [
        chart.mark_rect(stroke="white", strokeWidth=1).encode(color=color, tooltip=["arrival:N", "other:N", *numbers])
    ]
    if len(order) <= _TEXT_FITS:
        ink = alt.when(f"datum.cosine > {(1 + lowest) / 2}").then(alt.value(INK)).otherwise(alt.value("white"))
        layers.append(chart.mark_text(fontSize=11).encode(text=alt.Text("cosine:Q", format=".2f"), color=ink))
    return alt.layer(*layers).properties(title="cosine", width=470, height=max(90, 38 * len(order)))


def _lengths(norms: pd.DataFrame, order: list[str], keep: str) -> alt.Chart:
    chart = alt.Chart(norms.round(6)).transform_filter(keep).mark_bar(color=OKABE_ITO["blue"], size=14)
    return chart.encode(
        x=alt.X("norm:Q", title=None), y=alt.Y("arrival:N", sort=order, title=None, axis=alt.Axis(**BARE)),
        tooltip=["arrival:N", alt.Tooltip("norm:Q", format=".4f")],
    ).properties(title="norm", width=330, height=max(90, 38 * len(order)))  # fmt: skip
