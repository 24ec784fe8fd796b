"""SVG to pixels, with resvg: the same bytes on every machine, since no fonts of the machine are used."""

from __future__ import annotations

import io

import numpy as np

from tasks.errors import UserError


def render(svg: str, what: str) -> np.ndarray:
    """Draw an SVG document on white at its own size. Returns uint8 RGB of shape (height, width, 3).

    Raises:
        UserError: resvg can't draw it; names ``what``.
    """
    import resvg_py
    from PIL import Image

    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True)
    except ValueError as error:
        raise UserError(f"{what}: cannot be drawn: {error}") from None
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
