"""Vega, Vega-Lite and vega-embed as one script for the page, 0.9 MB.

`vl_convert` takes more than a second of a processor to put it together, each time with the same result; so it is kept
in the user's cache, one file to a version, whose first line has the hash of the rest.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

import altair as alt
import vl_convert

from tasks import layout
from tasks.storage import atomic

LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
"""The version of Vega-Lite that the figures are written for, as `vl_convert` wants it."""


@cache
def script() -> str:
    """The script, which defines ``window.vegaEmbed``; where the user's cache cannot be written, made each time."""
    kept = layout.user_cache("vega") / f"{version('vl-convert-python')}-{LITE}.js"
    if script_text := _intact(kept):
        return script_text
    made: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", LITE)
    with suppress(OSError):  # a home that is read-only, or full, costs the next report a second
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic.write(kept, f"{_head(made)}\n{made}")
    return made


def _intact(kept: Path) -> str | None:
    """What a file of the cache holds; None where there is none, or not what was written."""
    try:
        head, _, content = kept.read_bytes().decode().partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return content if head == _head(content) else None


def _head(content: str) -> str:
    return f"// sha256 of what follows: {hashlib.sha256(content.encode()).hexdigest()}"
