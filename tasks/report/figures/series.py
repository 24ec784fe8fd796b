"""Cells as series of a figure: their colours, dashes and shapes, and which of them are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from tasks.report.figures.figure import DASH, INIT, SHAPE, legend_toggle
from tasks.report.summary import DEPLOYS, INITS, techniques


def choices(cells: pd.DataFrame, *best_first: str) -> dict[str, list[str]]:
    """What a reader chooses among where there is more than one: technique, variant; ``best_first`` moves a technique
    to the front."""
    menus = {"technique": sorted(techniques(cells), key=lambda name: name not in best_first)}
    menus["variant"] = list(cells["variant"].unique())
    return {name: values for name, values in menus.items() if len(values) > 1}


def of_variant(given: Mapping[str, Sequence[str]]) -> str:
    """As `chosen`, for what belongs to a variant as a whole: the base and the references."""
    return chosen({name: values for name, values in given.items() if name == "variant"})


def chosen(given: Mapping[str, Sequence[str]]) -> str:
    """The filter that leaves what is chosen; what merges nothing belongs to every technique."""
    terms = {name: f"datum.{name} === {name}" for name in given}
    if "technique" in given:
        terms["technique"] = "(datum.technique === technique || datum.technique === '')"
    return " && ".join(terms.values()) or "true"


class Look:
    """Colour and shape by initialization, dash by deployment, and a legend of each that toggles its series."""

    def __init__(self, cells: pd.DataFrame):
        present = cells[cells["reference"] == ""]
        inits = [name for name in INITS if name in set(present["init"])]
        deploys = [name for name in DEPLOYS if name in set(present["deploy"])]
        several = present["protocol"].nunique() > 1
        init = alt.Legend(title="initialize", symbolOpacity=1, symbolStrokeWidth=0) if several else None
        deploy = alt.Legend(title="deploy", symbolType="stroke", symbolSize=500, values=deploys) if several else None
        self.toggles = legend_toggle("init"), legend_toggle("deploy")
        self.color = alt.Color("init:N", scale=_scale(inits, INIT), legend=init)
        self.shape = alt.Shape("init:N", scale=_scale(inits, SHAPE), legend=init)
        self.dash = alt.StrokeDash(
            "deploy:N", scale=_scale(DEPLOYS, DASH), legend=deploy
        )  # all: Vega joins legends of equal domains

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(str(toggle.name) for toggle in self.toggles)

    def opacity(self, shown: float) -> Any:
        """``shown`` for what both legends show, and next to nothing for the rest."""
        init, deploy = self.toggles
        return alt.when(init & deploy).then(alt.value(shown)).otherwise(alt.value(shown * 0.06))


def _scale(domain: Sequence[str], look: Mapping[str, Any]) -> alt.Scale:
    return alt.Scale(domain=domain, range=[look[name] for name in domain])
