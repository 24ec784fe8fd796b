"""Trackio, on this machine or in a Space (TRACKIO_DIR, TRACKIO_SPACE_ID)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tasks.track.tracker import Told, Tracker, attach


class Trackio(Tracker):
    """A run of the project, resumed by the timeline's name; metrics by step, params as its configuration.

    Each state is an artifact: its files by hash, its manifest and its training curve.
    """

    name: ClassVar[str] = "trackio"
    source: ClassVar[str] = "https://huggingface.co/docs/trackio"
    module: ClassVar[str] = "trackio"

    def send(self, timeline: str, params: Mapping[str, str], states: Sequence[Told], folder: Path) -> None:
        import trackio

        trackio.init(
            project=self.project, name=timeline, resume="allow", config=dict(params), auto_log_cpu=False,
            auto_log_gpu=False,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            for state in states:
                trackio.log(state.metrics, step=state.step)
                artifact = trackio.Artifact(f"{timeline}-{state.step:04d}", type="state")
                trackio.log_artifact(attach(artifact, state, Path(scratch)))
            trackio.finish()
