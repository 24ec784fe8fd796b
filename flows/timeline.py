"""The steps of a stream, in order; picks up where it stopped."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from prefect import flow

from flows.timestep import timestep
from tasks.params import load
from tasks.record import states, worktree


@flow(name="timeline", flow_run_name="to step {until}", validate_parameters=False)
def timeline(project: str, until: int, remote: str) -> list[str]:
    """Run every time step of a project's timeline that is not recorded yet, up to ``until``; returns the new tags.

    The caller holds the timeline's lock and has opened the store (`flows.run`). The code is taken down once: what
    changes while a run lasts counts for the next run.
    """
    folder = Path(project)
    code = worktree.code_of(folder)
    params = load(folder / "params.yaml")
    last = states.last(folder, params.timeline)
    first = last.step + 1 if last else 0
    return [timestep(project, step, asdict(code), remote) for step in range(first, until + 1)]
