"""Where things lie in a project and in a state, and how states are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

RAW_ARRIVAL = "data/raw/arrival"
RAW_EVALUATION = "data/raw/evaluation"
HISTORY = "data/history"
INPUTS = (RAW_ARRIVAL, RAW_EVALUATION, HISTORY)
"""What the flow places before the nodes run; each is tracked by a ``.dvc`` file beside it."""

ARRIVALS = "data/arrivals"
"""Files of arrivals that the project keeps, one folder each, and DVC's pointers to them."""

ARRIVAL = "data/step/arrival"
EVALUATION = "data/step/evaluation"
INIT = "data/step/init.safetensors"
EXPERT = "data/step/expert.safetensors"
RUNNING = "data/step/running"
DEPLOYED = "data/step/deployed.safetensors"
EVALUATION = "data/step/evaluation"
TRAINING = "data/step/training"
REGULARIZER = "data/step/regularizer"

PLOTS = ("plots/timeline.csv", "plots/datasets.csv")

RECORDED = (
    "params.yaml", "dvc.yaml", "dvc.lock", "metrics.json", "manifest.json", *PLOTS, *(f"{p}.dvc" for p in INPUTS),
)  # fmt: skip
"""What a state's tree holds beside the code."""


def private(project: Path) -> Path:
    """Everything of ours that git ignores: worktrees, logs, the embedded store, Prefect's home."""
    return project / ".chronomerge"


def branch(timeline: str) -> str:
    return f"refs/heads/states/{timeline}"


def pointer(timeline: str) -> str:
    """The tag at the deployed state, the newest that is promoted: what a server follows."""
    return f"refs/tags/deployed/{timeline}"


def decisions(timeline: str) -> str:
    """The ref that keeps what people have decided by hand: a commit for each, none ever taken away."""
    return f"refs/decisions/{timeline}"


def short_tag(timeline: str, step: int, line: int = 1) -> str:
    """The tag of a state: ``state/demo/0003``, and ``state/demo/0003.2`` on the timeline's second line."""
    return f"state/{timeline}/{step:04d}" + (f".{line}" if line > 1 else "")


def tag(timeline: str, step: int, line: int = 1) -> str:
    return f"refs/tags/{short_tag(timeline, step, line)}"


class Place(NamedTuple):
    """What the tag of a state says; in the order of `line` and `step`, states were recorded."""

    timeline: str
    line: int
    step: int


def place_of(tag_name: str) -> Place | None:
    """Read a tag, short or full; None where it is no state's (a user may keep tags of their own beside ours)."""
    found = re.fullmatch(r"(?:refs/tags/)?state/([^/]+)/(\d{4,})(?:\.([1-9]\d*))?", tag_name)
    if not found or found[3] == "1":  # the first line is not written
        return None
    return Place(found[1], int(found[3] or 1), int(found[2]))
