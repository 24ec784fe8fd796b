"""Where things lie in a project and in a state, and how states are named."""

from __future__ import annotations

import re
from pathlib import Path

RAW_ARRIVAL = "data/raw/arrival"
RAW_EVALUATION = "data/raw/evaluation"
HISTORY = "data/history"
INPUTS = (RAW_ARRIVAL, RAW_EVALUATION, HISTORY)
"""What the flow places before the nodes run; each is tracked by a ``.dvc`` file beside it."""

ARRIVAL = "data/step/arrival"
EXPERT = "data/step/expert.safetensors"
RUNNING = "data/step/running"
DEPLOYED = "data/step/deployed.safetensors"
TRAINING = "data/step/training"

RECORDED = ("params.yaml", "dvc.yaml", "dvc.lock", "metrics.json", "manifest.json", *(f"{p}.dvc" for p in INPUTS))
"""What a state's tree holds beside the code."""


def private(project: Path) -> Path:
    """Everything of ours that git ignores: worktrees, logs, the embedded store, Prefect's home."""
    return project / ".chronomerge"


def branch(timeline: str) -> str:
    return f"refs/heads/states/{timeline}"


def tag(timeline: str, step: int) -> str:
    return f"refs/tags/{short_tag(timeline, step)}"


def short_tag(timeline: str, step: int) -> str:
    return f"state/{timeline}/{step:04d}"


def is_tag(name: str) -> bool:
    return re.search(r"/\d{4,}$", name) is not None


def step_of(tag_name: str) -> int:
    """The time step of a tag such as ``state/demo/0003``."""
    return int(re.sub(r".*/", "", tag_name))
