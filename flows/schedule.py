"""The Prefect flow that a deployment runs: what is pending of a project's timeline, tried again where that helps.

Of at most one run at a time, Prefect's concurrency limit on the deployment is what people see: a run that is due while
another lasts is cancelled at once, so that none pile up. The timeline's lock is what holds: whoever runs, by whatever
way, one process at a time writes to a timeline, and a scheduled run waits for one that was started by hand.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed, State

from flows import hooks, notes
from flows.prefect import runs
from flows.prefect.api import Api, UnansweredError
from tasks import environment, processes, waits
from tasks.errors import UnavailableError, UserError

ENTRYPOINT = "flows.schedule.scheduled"
"""What a served run executes, whatever its deployment says; see `flows.processes.runner_process`."""

SERVED = "CHRONOMERGE_SERVED"
"""Set in the environment of what `flows.serve` starts: it ends with it."""


@flow(name="chronomerge", validate_parameters=False)
def scheduled(project: str = ".") -> State[Any]:
    """Run what is pending in a project's folder as ``chronomerge run`` would, and say in one line what came of it.

    The folder is that of this very code; the parameter has to name it.
    """
    if os.environ.get(SERVED):
        processes.end_with(os.getppid(), every=0.5)
    folder = Path(project).resolve()
    logger = get_run_logger()
    if why := _refused(folder):
        return Failed(message=why)
    _crash_predecessors(logger.warning)
    for pause in (*waits.seconds(waits.RUN), None):
        try:
            tags = _run(folder, logger.info)
        except UnavailableError as error:
            if pause is None:
                return _failed(folder, error)
            logger.warning("%s; another try in %s s", error, pause)
            time.sleep(pause)
        except UserError as error:
            return _failed(folder, error)
        else:
            return Completed(message=f"recorded {', '.join(tags)}" if tags else "nothing was pending")
    raise AssertionError


def _refused(folder: Path) -> str | None:
    """Why the run is not one of ours: who may change a deployment or start a run on a server need not be who serves."""
    own = Path(__file__).resolve().parents[1]
    if folder != own:
        return f"the parameter project is {folder}; this deployment runs {own} alone"
    if os.environ.get(SERVED) and deployment.id:
        steps = (Api(str(PREFECT_API_URL.value())).get(f"deployments/{deployment.id}") or {}).get("pull_steps")
        if steps:
            return "somebody gave the deployment pull steps, which are not run; start `chronomerge serve` again"
    return None


def _crash_predecessors(log: Callable[[str], object]) -> None:
    """Tell Prefect which earlier runs of the deployment are dead, where its limit allows one at a time.

    Whoever lives renews a lease on that one place; so this run would not be here if another lived.
    """
    if not deployment.id:
        return
    api = Api(str(PREFECT_API_URL.value()))
    try:
        limit = (api.get(f"deployments/{deployment.id}") or {}).get("global_concurrency_limit")
        if limit and limit["limit"] == 1:
            others = {"id": {"not_any_": [flow_run.id]}}
            for name in runs.crash(api, flow_runs=others, deployments={"id": {"any_": [deployment.id]}}):
                log(f"run {name} was dead, and is marked as crashed")
    except UnansweredError as error:
        log(str(error))


def _failed(folder: Path, error: UserError) -> State[Any]:
    hooks.failed(folder, error)
    return Failed(message=str(error))


def _run(folder: Path, log: Callable[[str], object]) -> list[str]:
    """One try, in a process of its own; returns the tags of the states it recorded.

    Raises:
        UnavailableError: another try can help.
        UserError: none can.
    """
    inherited = environment.for_child(**{notes.FLOW_RUN: str(flow_run.name or "")})
    variables = {name: value for name, value in inherited.items() if not name.startswith("PREFECT__")}
    process = processes.start("flows.processes.run_process", folder=folder, log=None, variables=variables)
    try:
        assert process.stdout
        for line in process.stdout:
            message = json.loads(line)
            if "tags" in message:
                return list(message["tags"])
            if "error" in message:
                raise (UnavailableError if message["may_pass"] else UserError)(message["error"])
            if message["done"] == message["total"]:
                log(f"{message['what']} {message['note']}".rstrip())
        raise UnavailableError(f"the run ended in the middle (status {process.wait()}): killed, or out of memory")
    except UserError:
        raise
    except BaseException:  # SIGTERM, or a cancellation on Prefect's pages
        process.terminate()
        raise
    finally:
        process.wait()
