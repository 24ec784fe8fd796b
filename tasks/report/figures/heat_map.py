"""Protocol × technique: the final geometric mean of every cell."""

from __future__ import annotations

import altair as alt
import pandas as pd

from tasks.report.figures.figure import BARE, INK, OKABE_ITO, Figure, data, interval, parameter
from tasks.report.figures.series import choices, chosen
from tasks.report.summary import everywhere, final, named, over_seeds, techniques

ORDER = (
    "zs + ema", "zs + all", "ft + ft", "ft + ema", "ft + all", "ema + ft", "ema + ema", "ema + all",
    "zs + routed", "ft + routed", "ema + routed",
)  # fmt: skip
"""TIME's eight protocols (arXiv 2412.06712), in the order of its table, and those that deploy routes."""

_SHOWN = ("cell", "protocol", "technique", "variant", "mean", "half", "half_text", "seeds", "best")


def draw(table: pd.DataFrame) -> Figure | None:
    """A rectangle a cell; None for fewer than two."""
    names = techniques(table)
    cells = over_seeds(final(table), ["geometric_mean"])
    if len(cells) < 2 or not names:
        return None
    menus = {name: values for name, values in choices(cells).items() if name == "variant"}
    cells = named(everywhere(cells, names))
    cells["best"] = cells["mean"] == cells.groupby("variant")["mean"].transform("max")
    cells["half_text"] = cells["half"].map(lambda half: f"± {half:.1f}" if half == half else "")
    middle = (cells["mean"].min() + cells["mean"].max()) / 2
    rows = [name for name in ORDER if name in set(cells["protocol"])]
    angle = -35 if len(names) > 4 else 0
    tooltip = [
        alt.Tooltip("cell:N", title="cell"), alt.Tooltip("mean:Q", title="geometric mean", format=".2f"),
        *interval(cells),
    ]  # fmt: skip
    chart = alt.Chart(data(cells, *_SHOWN)).transform_filter(chosen(menus)).encode(
        x=alt.X("technique:N", sort=names, title=None, axis=alt.Axis(orient="top", labelAngle=angle, **BARE)),
        y=alt.Y("protocol:N", sort=rows, title="initialize + deploy", axis=alt.Axis(**BARE)),
    )  # fmt: skip
    ink = alt.when(f"datum.mean > {middle}").then(alt.value(INK)).otherwise(alt.value("white"))
    color = alt.Color("mean:Q", title="geometric mean (%)", scale=alt.Scale(scheme="viridis"), legend=None)
    layers = [
        chart.mark_rect(stroke="white", strokeWidth=2).encode(color=color, tooltip=tooltip),
        chart.mark_text(dy=-5, fontSize=_fitting(13, 10), fontWeight="bold").encode(
            text=alt.Text("mean:Q", format=".1f"), color=ink
        ),
        chart.mark_text(dy=9, fontSize=_fitting(10, 9)).encode(text="half_text:N", color=ink),
        chart.transform_filter("datum.best").mark_rect(
            filled=False, stroke=OKABE_ITO["vermillion"], strokeWidth=3
        ).encode(tooltip=tooltip),
    ]  # fmt: skip
    layered = alt.layer(*layers).add_params(*parameter(menus)).properties(width=640, height=40 * len(rows))
    seeds = ", ± the 95 % interval over seeds" if cells["seeds"].max() > 1 else ""
    caption = f"Geometric mean of accumulation and retention after the last step (%){seeds}. The best cell is framed."
    if "ft + ft" in rows and len(names) > 1:
        caption += " ft + ft merges nothing, so it is the same under every technique."
    return Figure("protocols-techniques", "Protocols × techniques", caption, layered, 100, menus)


def _fitting(wide: int, narrow: int) -> alt.ExprRef:
    """A font size by the room that a column has: many techniques on a phone have little."""
    return alt.ExprRef(expr=f"bandwidth('x') < 36 ? {narrow} : {wide}")
