"""The steps of a stream, in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from flows.timestep import timestep
from tasks.record import dvc


@flow(name="timeline", flow_run_name="to step {last}", validate_parameters=False)
def timeline(project: str, first: int, last: int, code: dict[str, Any], remote: str) -> list[str]:
    """Run time steps ``first`` to ``last`` of a project's timeline; returns the tags of the states they became.

    The caller (`flows.run`) holds the timeline's lock, has opened the store and has taken down the code.
    """
    with dvc.kept(Path(project)):
        return [timestep(project, step, code, remote, fresh=step > first) for step in range(first, last + 1)]
