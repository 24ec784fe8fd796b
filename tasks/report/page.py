"""The report as one HTML file that needs nothing else: no network, no server, no file beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks.report import facts, states_table, vega
from tasks.report.classes import Classes
from tasks.report.figures.figure import Figure
from tasks.report.provenance import Provenance
from tasks.report.vectors import Missing
from tasks.text import printable

_HERE = Path(__file__).parent


def build(
    table: pd.DataFrame,
    figures: Sequence[Figure],
    left_out: Sequence[Missing],
    provenance: Provenance,
    classes: Classes,
) -> str:
    """The page of a tidy table.

    ``left_out`` are the weights that some figure would have needed; ``classes`` is what is known of one timeline's
    test samples.
    """
    jinja = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    return jinja.get_template("page.html").render(
        title=facts.title(table),
        extent=facts.extent(table),
        facts=facts.headline(table),
        figures=figures,
        left_out=left_out,
        states=states_table.build(table),
        classes=classes,
        notes=facts.notes(table),
        several=table["timeline"].nunique() > 1,
        provenance=provenance,
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=_script((_HERE / "page.js").read_text(encoding="utf-8")),
        vega=_script(vega.script()),
        charts=_json({figure.name: _chart(figure) for figure in figures}),
    )


def _chart(figure: Figure) -> dict[str, Any]:
    """What page.js wants to know of a figure."""
    return {
        "spec": figure.specification(standalone=False),
        "margin": figure.margin,
        "choices": list(figure.choices),
        "toggles": list(figure.toggles),
    }


def _json(content: Any) -> Markup:
    """JSON for inside a script element, which it must not end."""
    return Markup(json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"))


def _script(text: str) -> Markup:
    return Markup(text.replace("</script", "<\\/script"))  # only ever within a string
