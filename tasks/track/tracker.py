"""What a tracker is, and what it is told."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Mapping, Sequence
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
    def send(self, timeline: str, params: Mapping[str, str], states: Sequence[Told]) -> None:
        """Add states to the timeline's run, which is made where it is missing; any error means that none was added."""


def of(chosen: Named) -> Tracker:
    """The tracker that an entry of ``track`` means.

    Raises:
        UserError: there is none of that name, or a setting is wrong.
    """
    return create(Tracker, chosen)  # type: ignore[type-abstract]
