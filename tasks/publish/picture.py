"""The lineage as a picture: a box for each state, in rows, an arrow from each to the next."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.text import one_line

_WIDTH, _HEIGHT, _GAP, _PER_ROW, _MARGIN = 190, 74, 34, 4, 16
_LONGEST = 26
"""Characters of a line in a box."""


def svg(facts: Sequence[Mapping[str, Any]]) -> str:
    """The picture as SVG; ``facts`` are those of `tasks.publish.card.facts`."""
    rows = -(-len(facts) // _PER_ROW)
    columns = min(len(facts), _PER_ROW)
    width = 2 * _MARGIN + columns * _WIDTH + (columns - 1) * _GAP
    height = 2 * _MARGIN + rows * _HEIGHT + (rows - 1) * _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for index, one in enumerate(facts):
        x, y = _corner(index)
        if index:
            parts.append(_arrow(*_corner(index - 1), x, y))
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="#f3f6fa" stroke="#4c6a92"/>'
        )
        for line, (key, size, colour) in enumerate(
            (("title", 14, "#1b2a41"), ("kind", 11, "#5b6777"), ("scores", 11, "#1b2a41"))
        ):
            text = one_line(str(one[key]))
            shown = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
            parts.append(
                f'<text x="{x + 10}" y="{y + 23 + 20 * line}" font-size="{size}" fill="{colour}">'
                f"{html.escape(shown)}</text>"
            )
    return "\n".join([*parts, "</svg>"])


def png(facts: Sequence[Mapping[str, Any]]) -> bytes:
    """The picture as PNG, two pixels for each of the SVG's."""
    import vl_convert

    return bytes(vl_convert.svg_to_png(svg(facts), 2.0))


def _corner(index: int) -> tuple[int, int]:
    row, column = divmod(index, _PER_ROW)
    return _MARGIN + column * (_WIDTH + _GAP), _MARGIN + row * (_HEIGHT + _GAP)


def _arrow(x0: int, y0: int, x1: int, y1: int) -> str:
    middle = y1 + _HEIGHT // 2
    if y0 == y1:
        path = f"M {x0 + _WIDTH} {middle} H {x1}"
        head = f"M {x1} {middle} l -7 -4 v 8 z"
    else:  # down to the beginning of the next row
        half = y1 - _GAP // 2
        path = f"M {x0 + _WIDTH // 2} {y0 + _HEIGHT} V {half} H {x1 + _WIDTH // 2} V {y1}"
        head = f"M {x1 + _WIDTH // 2} {y1} l -4 -7 h 8 z"
    return f'<path d="{path}" fill="none" stroke="#4c6a92"/><path d="{head}" fill="#4c6a92"/>'
