"""The Prefect flow that a deployment runs: the pending steps of a timeline, tried again where another try can help.

Two limits keep it to one run at a time. Prefect's concurrency limit on the deployment cancels a run that is due while
another one lasts, so that none pile up. The lock of the timeline allows one writer, however a run was started: a
scheduled run waits for one that was started by hand.
"""

from __future__ import annotations

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
from flows.processes import messages
from tasks import environment, processes, waits
from tasks.errors import UnavailableError, UserError

ENTRYPOINT = "flows.schedule.scheduled"
"""The flow that a served run executes, even if its deployment names another; see `flows.processes.runner_process`."""

SERVED = "CHRONOMERGE_SERVED"
"""The environment variable of processes that `flows.serve` starts: they end with it."""


@flow(name="chronomerge", validate_parameters=False)
def scheduled(project: str = ".") -> State[Any]:
    """Run the pending steps of a project as ``chronomerge run`` would; the message of the state is the result.

    ``project`` must be the folder of this code.
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
    """Why the run is refused, if it is: other users of the server may change a deployment or start runs."""
    own = Path(__file__).resolve().parents[1]
    if folder != own:
        return f"the parameter project is {folder}; this deployment runs only {own}"
    if os.environ.get(SERVED) and deployment.id:
        steps = (Api(str(PREFECT_API_URL.value())).get(f"deployments/{deployment.id}") or {}).get("pull_steps")
        if steps:
            return "the deployment has pull steps, which are refused; start `chronomerge serve` again to remove them"
    return None


def _crash_predecessors(log: Callable[[str], object]) -> None:
    """Mark earlier runs of the deployment as crashed, if its limit allows one run at a time.

    A living run renews its lease on that one slot, so this run could not have started if another one lived.
    """
    if not deployment.id:
        return
    api = Api(str(PREFECT_API_URL.value()))
    try:
        limit = (api.get(f"deployments/{deployment.id}") or {}).get("global_concurrency_limit")
        if limit and limit["limit"] == 1:
            others = {"id": {"not_any_": [flow_run.id]}}
            for name in runs.crash(api, flow_runs=others, deployments={"id": {"any_": [deployment.id]}}):
                log(f"run {name} had died and is marked as crashed")
    except UnansweredError as error:
        log(str(error))


def _failed(folder: Path, error: UserError) -> State[Any]:
    hooks.failed(folder, error)
    return Failed(message=str(error))


def _run(folder: Path, log: Callable[[str], object]) -> list[str]:
    """One try, in a process of its own; returns the tags of the recorded states.

    Raises:
        UnavailableError: another try can help.
        UserError: another try cannot help.
    """
    inherited = environment.for_child(**{notes.FLOW_RUN: str(flow_run.name or "")})
    variables = {name: value for name, value in inherited.items() if not name.startswith("PREFECT__")}

    def finished(what: str, done: int, total: int, note: str = "") -> None:
        if done == total:
            log(f"{what} {note}".rstrip())

    process = processes.start("flows.processes.run_process", folder=folder, log=None, variables=variables)
    try:
        assert process.stdout
        tags = messages.outcome(process.stdout, finished)
        if tags is not None:
            return tags
        raise UnavailableError(f"the run ended early (status {process.wait()}): killed, or out of memory")
    except UserError:
        raise
    except BaseException:  # SIGTERM, or a cancellation on Prefect's pages
        process.terminate()
        raise
    finally:
        process.wait()
