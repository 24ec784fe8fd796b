"""The process of a timeline's deployment: registers it with Prefect, and starts its runs when they are due.

It uses Prefect's Runner; each run is a process with the code that the project has when it starts.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.processes import messages
from flows.schedule import ENTRYPOINT, SERVED
from tasks import layout, processes

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from prefect.deployments.runner import RunnerDeployment
    from prefect.runner import Runner


def main() -> None:
    processes.end_with(os.getppid(), every=0.5)
    os.environ[SERVED] = "1"
    # A user who may change the deployment on the server could name other code, or commands to run before it (pull
    # steps): Prefect's engine prefers this variable to the deployment.
    os.environ["PREFECT__FLOW_ENTRYPOINT"] = ENTRYPOINT
    answers = messages.answers()
    plan = json.loads(sys.argv[1])
    from prefect.runner import Runner

    # Prefect keeps files in the folder ``runner_storage`` of the temporary one, where others could have made it first.
    own = layout.make_private(Path(plan["project"])) / "runner"
    shutil.rmtree(own, ignore_errors=True)  # of a runner that was killed
    own.mkdir(mode=0o700)
    tempfile.tempdir = str(own)
    runner = Runner(name=plan["name"], limit=None, pause_on_shutdown=False, query_seconds=plan["poll"])

    async def serve() -> None:
        messages.send(answers, deployment=str(await runner.aadd_deployment(await _deployment(plan))))
        running = asyncio.create_task(runner.start())
        await asyncio.sleep(0)  # first it sets a handler of its own, which ends the process but not its runs
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: asyncio.create_task(_stop(runner)))
        await running

    asyncio.run(serve())


async def _stop(runner: Runner) -> None:
    """End the runner and its runs. A run that has ended keeps its state: Prefect would force it to cancelled."""
    propose = runner._state_proposer.propose_cancelled

    async def cancel(flow_run: FlowRun, state_updates: dict[str, Any] | None = None) -> bool:
        now = (await runner._client.read_flow_run(flow_run.id)).state
        return False if now and now.is_final() else await propose(flow_run, state_updates)

    runner._state_proposer.propose_cancelled = cancel  # type: ignore[method-assign]
    await runner.astop()


async def _deployment(plan: dict[str, Any]) -> RunnerDeployment:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.events import DeploymentEventTrigger
    from prefect.flows import EntrypointType
    from prefect.schedules import Cron

    from flows.schedule import scheduled

    on_arrival = DeploymentEventTrigger(
        name=f"{plan['name']}: on arrival", expect={plan["event"]}, match={"prefect.resource.id": plan["resource"]}
    )
    return await scheduled.ato_deployment(
        plan["name"],
        description=plan["description"],
        tags=plan["tags"],
        parameters={"project": plan["project"]},
        schedules=[Cron(plan["cron"], timezone=plan["timezone"])] if plan["cron"] else [],
        triggers=[on_arrival] if plan["on_arrival"] else [],
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        paused=False,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


if __name__ == "__main__":
    main()
