"""The steps of a stream, in order."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import flow

from flows import hooks
from flows.timestep import timestep
from tasks import record, track
from tasks.record import Code, params_of
from tasks.storage import dvc


@flow(name="timeline", flow_run_name="to step {last}", validate_parameters=False)
def timeline(
    project: str, first: int, last: int, code: dict[str, Any], remote: str, command_began: float | None
) -> list[str]:
    """Run time steps ``first`` to ``last`` of a project's timeline; returns the tags of the states they became.

    The caller (`flows.run`) holds the timeline's lock, has opened the store and has taken down the code. What passed
    since ``command_began`` (`time.monotonic`) is its start; None for a cell whose cell worker has run others.
    """
    now = time.monotonic()
    began, starting = (now, None) if command_began is None else (command_began, now - command_began)
    folder = Path(project)
    params = params_of(folder, Code(**code))
    tags = []
    with dvc.reused(folder):
        for step in range(first, last + 1):
            tag = timestep(
                project, step, code, remote, began, starting if step == first else None, fresh=step > first
            )  # fmt: skip
            tags.append(tag)
            if recorded := record.last(folder, params.timeline):
                began += recorded.manifest.elapsed or 0.0
            if params.track:
                track.tell(folder, params)
            hooks.recorded(folder, params.hooks, params.timeline, step, tags[-1])
    return tags
