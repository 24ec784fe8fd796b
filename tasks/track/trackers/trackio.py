"""Trackio, on this machine or in a Space (TRACKIO_DIR, TRACKIO_SPACE_ID)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from tasks.track.tracker import Told, Tracker


class Trackio(Tracker):
    """A run of the project, resumed by the timeline's name; metrics by step, params as its configuration."""

    name: ClassVar[str] = "trackio"
    source: ClassVar[str] = "https://huggingface.co/docs/trackio"
    module: ClassVar[str] = "trackio"

    def send(self, timeline: str, params: Mapping[str, str], states: Sequence[Told]) -> None:
        import trackio

        config = {**params, **{f"{state.tag}/{path}": md5 for state in states for path, md5 in state.files.items()}}
        trackio.init(project=self.project, name=timeline, resume="allow", config=config)
        for state in states:
            trackio.log(state.metrics, step=state.step)
        trackio.finish()
