"""Draws the README's picture from recorded states: accumulation and retention over the steps of some timelines.

    .venv/bin/python docs/picture.py docs/demo.svg demo demo-ft

`demo` is what `make demo` records; `demo-ft` is the same params.yaml with `timeline: demo-ft` and
`time: {init: ft, deploy: ft}`, that is, sequential fine-tuning with the same data and replay.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

PANELS = {
    "A_KA": "knowledge accumulation",
    "A_ZS": "zero-shot retention",
    "geometric_mean": "geometric mean",
}
STYLES = ({"color": "#0072b2", "marker": "o"}, {"color": "#d55e00", "marker": "s", "linestyle": "--"})
"""Two of Okabe and Ito's colours, told apart by marker and dash as well."""


def main() -> None:
    target, timelines = Path(sys.argv[1]), sys.argv[2:]
    draw({name: states(name) for name in timelines}, target)


def states(timeline: str) -> list[dict[str, Any]]:
    command = [str(Path(sys.executable).parent / "chronomerge"), "states", "--json", "--timeline", timeline]
    rows: list[dict[str, Any]] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return rows


def draw(found: dict[str, list[dict[str, Any]]], target: Path) -> None:
    mpl.rcParams.update({"svg.hashsalt": "chronomerge", "font.size": 9, "svg.fonttype": "none"})
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.1), layout="constrained")
    for axis, (key, title) in zip(axes, PANELS.items(), strict=True):
        for rows, style in zip(found.values(), STYLES, strict=False):
            label = f"init {rows[-1]['init']}, deploy {rows[-1]['deploy']}"
            axis.plot([r["step"] for r in rows], [r[key] for r in rows], label=label, markersize=4, **style)
        rows = next(iter(found.values()))
        axis.set_xticks([r["step"] for r in rows], [r["arrival"] for r in rows], rotation=45, ha="right")
        axis.set_title(f"{title} (%)", loc="left", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
