"""What a tracker is, and what it is told."""

from __future__ import annotations

import importlib.util
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from tasks.choice import Choice, create
from tasks.params import Named


class Told(BaseModel):
    """One recorded state, as trackers see it."""

    model_config = ConfigDict(frozen=True)

    step: int
    tag: str
    commit: str
    recorded_at: str
    """As ISO 8601."""
    metrics: dict[str, float]
    """``A_KA``, or ``top1/SET``: those of the report's table, in its units."""
    files: dict[str, str]
    """Input or output of the step → md5."""
    curve: str | None = None
    """The training's ``curve.csv``, whose first column is the training step; None where nothing was trained."""
    manifest: dict[str, Any]
    """What of ``manifest.json`` is no name of people, hosts or paths."""


class Tracker(Choice):
    """A tracker; its fields are its settings. Addresses and tokens are where its own library looks for them."""

    key: ClassVar[str] = "track"
    package: ClassVar[str] = "tasks.track.trackers"
    module: ClassVar[str]
    """What it imports."""

    project: str = "chronomerge"
    """What the tracker calls the project (MLflow: the experiment); a timeline is a run in it."""

    @classmethod
    def installed(cls) -> bool:
        return importlib.util.find_spec(cls.module) is not None

    @abstractmethod
    def send(self, timeline: str, params: Mapping[str, str], states: Sequence[Told], folder: Path) -> None:
        """Add states to the timeline's run, which is made where it is missing; any error means that none was added.

        ``folder`` is the tracker's own, and stays.
        """


def attach(artifact: Any, state: Told, scratch: Path) -> Any:
    """Put what a state is made of into an artifact of wandb or trackio: hashes of its files, manifest, training curve.

    ``files.json`` maps path → md5; the bytes stay in the project's store.
    """
    contents = {
        "files.json": json.dumps(state.files, indent=1), "manifest.json": json.dumps(state.manifest, indent=1),
        "curve.csv": state.curve,
    }  # fmt: skip
    for name, content in contents.items():
        if content is not None:
            file = scratch / f"{state.step}-{name}"
            file.write_text(content, encoding="utf-8")
            artifact.add_file(str(file), name=name)
    return artifact


def of(chosen: Named) -> Tracker:
    """The tracker that an entry of ``track`` means.

    Raises:
        UserError: there is none of that name, or a setting is wrong.
    """
    return create(Tracker, chosen)  # type: ignore[type-abstract]
