"""Knowledge accumulation, zero-shot retention and their geometric mean over time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd

from tasks.report.figures.figure import FAINT, Chart, Figure, data, interval, parameter
from tasks.report.figures.labels import spread_groups
from tasks.report.figures.series import Look, choices, chosen, of_variant
from tasks.report.summary import REFERENCES, last_step, named, over_seeds

PANELS = {"A_KA": "knowledge accumulation, A_KA (%)", "A_ZS": "zero-shot retention, A_ZS (%)"}

_SHOWN = (
    "cell", "init", "deploy", "technique", "variant", "step", "arrival", "mean", "half", "low", "high", "seeds",
)  # fmt: skip

_SERIES = ["init", "deploy", "technique", "variant"]
_HEIGHT = 300
_NAMES_FIT = 12
"""Steps up to which arrivals are named at the axis."""


def draw(table: pd.DataFrame, best: str) -> Figure | None:
    """Lines over steps, with bands where there are seeds; None where there is but one step."""
    last = last_step(table)
    if last < 1:
        return None
    means = named(over_seeds(table, list(PANELS)))
    menus = choices(means, best)
    look = Look(means)
    panels = [_panel(means[means["metric"] == metric], title, look, menus, last) for metric, title in PANELS.items()]
    panels[0] = panels[0].add_params(*look.toggles)  # of one view, and heard by all
    chart = alt.concat(*panels, columns=2).add_params(*parameter(menus)).resolve_scale(y="independent")
    seeds = int(means["seeds"].max())
    band = ""
    if seeds > 1:
        band = f" Bands are 95 % intervals over {seeds} seeds"
        wide = sum(int(_too_wide(means[means["metric"] == metric]).sum()) for metric in PANELS)
        band += "." if not wide else f"; {wide} are wider than their panel and are left out (tooltips have them)."
    return Figure("over-time", "Over time", f"Every line starts at the base.{band}", chart, 52, menus, look.names)


def _panel(means: pd.DataFrame, title: str, look: Look, menus: Mapping[str, Sequence[str]], last: int) -> Chart:
    x = alt.X("step:Q", title=None, axis=_steps(means, last), scale=alt.Scale(domain=[0, last]))
    domain = _domain(means)
    y = alt.Y("mean:Q", title=None, scale=alt.Scale(domain=domain, nice=False), axis=alt.Axis(format="~f"))
    tooltip = [
        alt.Tooltip("cell:N", title="cell"), alt.Tooltip("step:Q"), alt.Tooltip("arrival:N"),
        alt.Tooltip("mean:Q", title="mean", format=".2f"), *interval(means),
    ]  # fmt: skip
    cells = means[means["reference"] == ""]
    lines = alt.Chart(data(cells, *_SHOWN)).transform_filter(chosen(menus)).encode(x=x)
    wide = _too_wide(means)
    drawn = cells[~cells.set_index(_SERIES).index.isin(wide[wide].index)]
    bands = alt.Chart(data(drawn, *_SHOWN)).transform_filter(chosen(menus)).encode(x=x)
    detail = alt.Detail(["technique:N", "variant:N"])
    band = bands.mark_area(clip=True).encode(
        y=alt.Y("low:Q", title=None), y2="high:Q", color=look.color,
        detail=["deploy:N", "technique:N", "variant:N"], opacity=look.opacity(0.13),
    )  # fmt: skip
    line = lines.mark_line(strokeWidth=2).encode(
        y=y, color=look.color, strokeDash=look.dash, detail=detail, opacity=look.opacity(1)
    )
    points = lines.mark_point(filled=True, size=45, fillOpacity=1).encode(
        y=y, color=look.color, shape=look.shape, tooltip=tooltip, opacity=look.opacity(1)
    )
    layers = [*([band] if means["half"].notna().any() else []), line, points]
    return alt.layer(*layers, *_references(means, last, domain, of_variant(menus))).properties(
        title=title, width=470, height=_HEIGHT
    )


def _domain(means: pd.DataFrame) -> list[float]:
    """The values that the panel shows: every line, and as much of the bands as leaves the lines half of the height."""
    low, high = float(means["mean"].min()), float(means["mean"].max())
    half = float(means["half"].max()) if means["half"].notna().any() else 0.0
    margin = max(0.04 * (high - low), min(half, (high - low) / 2), 0.5)
    return [max(0.0, low - margin), min(100.0, high + margin)]


def _too_wide(means: pd.DataFrame) -> pd.Series[bool]:
    """By series, whether its band is somewhere wider than the panel: with two seeds, it often says nothing."""
    cells = means[means["reference"] == ""]
    low, high = _domain(means)
    return cells.groupby(_SERIES, sort=False)["half"].max() > (high - low) / 2


def _steps(means: pd.DataFrame, last: int) -> alt.Axis:
    """Steps by the names of their arrivals, where these are the same for all and have room; else by number."""
    names = [each.unique() for _, each in means[means["reference"] == ""].groupby("step")["arrival"]]
    if last < _NAMES_FIT and all(len(each) == 1 for each in names):
        labels = json.dumps([str(each[0]) for each in names])
        return alt.Axis(values=list(range(last + 1)), labelExpr=f"{labels}[datum.value]", labelAngle=-40, grid=False)
    return alt.Axis(tickMinStep=1, format="d", grid=False, title="time step")


def _references(means: pd.DataFrame, last: int, domain: Sequence[float], keep: str) -> list[alt.Chart]:
    """The base as a rule, a reference over steps as a grey line, one of fewer steps as a rule at its last value."""
    marks: list[tuple[str, str, pd.DataFrame, list[float]]] = []
    for variant, each in means[(means["reference"] == "") & (means["step"] == 0)].groupby("variant"):
        marks.append(("base", str(variant), _rule(each["mean"].mean(), last), [2, 2]))
    for _, each in means[means["reference"] != ""].groupby(["reference", "variant"], sort=False):
        name, variant = str(each["reference"].iloc[0]), str(each["variant"].iloc[0])
        path = each.sort_values("step")[["step", "mean"]]
        if path["step"].max() < means[(means["reference"] == "") & (means["variant"] == variant)]["step"].max():
            path = _rule(path["mean"].iloc[-1], last)
        marks.append((REFERENCES[name], variant, path, [5, 2]))
    layers: list[alt.Chart] = []
    for _, variant, path, dash in marks:
        chart = alt.Chart(path.assign(variant=variant)).transform_filter(keep).encode(x="step:Q", y="mean:Q")
        layers.append(chart.mark_line(color=FAINT, strokeDash=dash, strokeWidth=1.2))
    ends = pd.DataFrame([
        {"label": label, "variant": variant, "step": last, "mean": path["mean"].iloc[-1]}
        for label, variant, path, _ in marks
    ])  # fmt: skip
    pixel = (domain[1] - domain[0]) / _HEIGHT
    ends["mean"] += 8 * pixel  # above the line
    ends["mean"] = spread_groups(ends, ["variant"], "mean", 13 * pixel, domain[0] + 6 * pixel, domain[1] - 6 * pixel)
    text = alt.Chart(ends).transform_filter(keep).mark_text(align="right", color=FAINT, fontSize=11)
    halo = text.mark_text(align="right", stroke="white", strokeWidth=3, fontSize=11)
    return [*layers, *(each.encode(x="step:Q", y="mean:Q", text="label:N") for each in (halo, text))]


def _rule(value: float, last: int) -> pd.DataFrame:
    return pd.DataFrame({"step": [0, last], "mean": value})
