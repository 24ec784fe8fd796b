"""Where things lie in a project and in a state."""

from __future__ import annotations

import errno
import os
import posixpath
from pathlib import Path

RAW_ARRIVAL = "data/raw/arrival"
RAW_EVALUATION = "data/raw/evaluation"
HISTORY = "data/history"
BASE = "data/history/weights/base.safetensors"
RAW = (RAW_ARRIVAL, RAW_EVALUATION)
INPUTS = (*RAW, HISTORY)
"""What the flow places before the nodes run; each is tracked by a ``.dvc`` file beside it."""

ARRIVALS = "data/arrivals"
"""Files of arrivals that the project keeps, one folder each, and DVC's pointers to them."""

ARRIVAL = "data/step/arrival"
EVALUATION = "data/step/evaluation"
INIT = "data/step/init.safetensors"
EXPERT = "data/step/expert.safetensors"
CODED_INIT = "data/step/init.weights"
CODED_EXPERT = "data/step/expert.weights"
"""Where `store.experts` names a codec: these in place of the two above."""
STATISTICS = "data/step/statistics"
FIT = "data/step/fit"
RUNNING = "data/step/running"
DEPLOYED = "data/step/deployed.safetensors"
ROUTED = "data/step/routed"
"""With `time.deploy: routed`, from step 1 on: this folder in place of the deployed model."""
EVALUATION = "data/step/evaluation"
TRAINING = "data/step/training"
REGULARIZER = "data/step/regularizer"
HEADS = "data/step/heads"
COMPATIBILITY = "data/step/compatibility"
PREDICTIONS = "data/step/predictions"

PLOTS = ("plots/timeline.csv", "plots/datasets.csv")

HEADS_METRICS = "heads.json"
"""Scores of heads, where a timeline has any."""
COMPATIBILITY_METRICS = "compatibility.json"
"""What the deployed model finds in galleries of earlier states, where a timeline measures that."""
OPTIONAL = (HEADS_METRICS, COMPATIBILITY_METRICS)
"""What not every state's tree holds."""

RECORDED = (
    "params.yaml", "dvc.yaml", "dvc.lock", "metrics.json", *OPTIONAL,
    "manifest.json", *PLOTS,
    *(f"{p}.dvc" for p in INPUTS),
)  # fmt: skip
"""What a state's tree holds beside the code."""


def private(project: Path) -> Path:
    """Everything of ours that git ignores: worktrees, logs, the embedded store, Prefect's home."""
    return project / ".chronomerge"


def make_private(project: Path) -> Path:
    """`private`, made for its owner alone (mode 0700): logs, downloads and notes are nobody else's business."""
    folder = private(project)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:  # made by an older version, or by a tool with the user's umask
        folder.chmod(0o700)
    return folder


OURS = (".dvc", ".chronomerge")
"""DVC's own folder and ours."""
_OF_ONE_MACHINE = (".chronomerge", ".dvc/config.local", ".dvc/tmp", ".dvc/cache")


def is_of_one_machine(path: str, *, link: bool) -> bool:
    """Whether a path of a repository, in `OURS`, is what each machine makes for itself, or leads there: its secrets,
    notes, logs and cache. Nobody else's repository may bring them."""
    plain = path.lower()  # some file systems take no note of case
    return plain in OURS or link or any(f"{plain}/".startswith(f"{one}/") for one in _OF_ONE_MACHINE)


def is_state(folder: Path) -> bool:
    """Whether a folder holds a restored state."""
    if not is_there(folder):
        return False
    deployed = (folder / DEPLOYED).is_file() or (folder / ROUTED).is_dir()
    return (folder / "manifest.json").is_file() and deployed


def user_cache(kind: str) -> Path:
    """A folder for what is made once for a user, for all projects, and made again where it is gone or damaged."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chronomerge" / kind


def is_inside(path: str) -> bool:
    """Whether a relative path stays below where it starts, and makes no repository of git's: whoever enters a folder
    with one runs what its configuration names."""
    plain = posixpath.normpath(path)
    return not plain.startswith(("/", "../")) and plain not in (".", "..") and ".git" not in plain.lower().split("/")


def is_there(path: Path) -> bool:
    """Whether there is something at a path that somebody else has named: nothing is where no file can be."""
    try:
        return path.exists()
    except ValueError:  # a null byte
        return False
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False
