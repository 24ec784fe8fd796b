"""Compatibility: what each state's queries find in the galleries of the states before it."""

from __future__ import annotations

import altair as alt
import pandas as pd

from tasks.report.figures.figure import BARE, INK, OKABE_ITO, Chart, Figure, data

PREFIX = "gallery_recall@"
"""Of metrics of the tidy table: ``gallery_recall@K:STEP``."""
_TEXT_FITS = 14
"""States up to which the numbers are written into the rectangles."""
_SHOWN = ("step", "gallery", "value", "own", "worse", "sets", "note")


def draw(table: pd.DataFrame, timeline: str) -> Figure | None:
    """Two heat maps of one timeline, recall@1 and recall@5; None where it does not measure compatibility."""
    own = table[table["timeline"] == timeline]
    recalls = own[own["metric"].str.startswith(PREFIX)]
    if recalls.empty or recalls["step"].nunique() < 2:
        return None
    place = recalls["metric"].str.removeprefix(PREFIX).str.split(":", expand=True)
    means = (
        recalls.assign(k=place[0], gallery=place[1].astype(int))
        .groupby(["k", "step", "gallery"])["value"]
        .agg(value="mean", sets="count")
        .reset_index()
    )
    domain = [float(means["value"].min()), float(means["value"].max())]
    panels = [_panel(means[means["k"] == k], k, domain) for k in ("1", "5")]
    pairs = own[own["metric"] == "compatible_pairs"].sort_values("step")
    share = f" {pairs['value'].iloc[-1]:.0f} % of the pairs of states are compatible." if len(pairs) else ""
    caption = (
        "Queries of a row's state in the gallery that a column's state has embedded: recall in percent, mean over sets."
        " The diagonal is a state's own gallery. Framed: less than the state that made the gallery finds in it." + share
    )
    return Figure("compatibility", "Searching in an older index", caption, alt.concat(*panels, columns=2), 60)


def _panel(means: pd.DataFrame, k: str, domain: list[float]) -> Chart:
    """One heat map; steps are rows (queries) and columns (galleries)."""
    itself = means[means["step"] == means["gallery"]].set_index("step")["value"]
    means = means.assign(own=means["gallery"].map(itself))
    means["worse"] = means["value"] < means["own"] - 1e-9
    means["note"] = means["worse"].map({True: "less than its own state finds", False: "works"})
    steps = sorted(set(means["step"]))
    tooltip = [
        alt.Tooltip("step:O", title="queries of step"), alt.Tooltip("gallery:O", title="gallery of step"),
        alt.Tooltip("value:Q", title="%", format=".2f"), alt.Tooltip("own:Q", title="its own state", format=".2f"),
        alt.Tooltip("note:N"), alt.Tooltip("sets:Q"),
    ]  # fmt: skip
    chart = alt.Chart(data(means, *_SHOWN)).encode(
        x=alt.X("gallery:O", title="gallery of step", sort=steps, axis=alt.Axis(labelAngle=0, **BARE)),
        y=alt.Y("step:O", title="queries of step", sort=steps, axis=alt.Axis(titlePadding=12, **BARE)),
    )
    color = alt.Color("value:Q", scale=alt.Scale(scheme="viridis", domain=domain), legend=None)
    layers = [chart.mark_rect(stroke="white", strokeWidth=1).encode(color=color, tooltip=tooltip)]
    if len(steps) <= _TEXT_FITS:
        ink = alt.when(f"datum.value > {sum(domain) / 2}").then(alt.value(INK)).otherwise(alt.value("white"))
        layers.append(chart.mark_text(fontSize=11).encode(text=alt.Text("value:Q", format=".0f"), color=ink))
    frame = chart.transform_filter("datum.worse").mark_rect(filled=False, stroke=OKABE_ITO["vermillion"], strokeWidth=2)
    return alt.layer(*layers, frame.encode(tooltip=tooltip)).properties(
        title=f"recall@{k}", width=330, height=max(120, 28 * len(steps))
    )
