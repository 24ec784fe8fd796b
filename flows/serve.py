"""``chronomerge serve``: keeps a Prefect server and a deployment of the timeline's run up until it is ended.

The server, the runner (which starts runs) and each run are child processes. If the server or the runner ends, both are
started again. This process stores nothing that a new start would need.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from flows import notes, serve_note
from flows.prefect import runs, schedules
from flows.prefect import server as prefect_server
from flows.prefect.api import Api, UnansweredError
from flows.run import pending
from flows.serve_note import Serving
from tasks import layout, processes, waits
from tasks.errors import UserError
from tasks.params import Params, load
from tasks.storage import embedded, locks

EVENT = "chronomerge.arrived"
"""The Prefect event of a stream that has grown; the deployment starts a run on it."""

LOOK_SECONDS = 5.0
"""Between two reads of params.yaml, and between two requests to the server."""
STOP_SECONDS = 60
"""How long a run may take to end after a request to."""


@dataclass(frozen=True)
class RunSchedule:
    """When runs are due."""

    cron: str | None
    timezone: str
    on_arrival: bool


@dataclass(frozen=True)
class _Attempt:
    """A request for a run (of a stream by its signature, or of a run by its id), and when to repeat it."""

    subject: str
    again: float = 0.0
    pause: float = field(default_factory=lambda: waits.seconds(waits.ASK)[0])

    def repeated(self) -> _Attempt:
        return _Attempt(self.subject, time.monotonic() + self.pause, 2 * self.pause)


class _EndedError(Exception):
    """The server or the runner has ended."""


def serve(project: Path, schedule: RunSchedule, report: Callable[[str], None]) -> None:
    """Serve a project until SIGTERM or Ctrl-C; ``report`` is called with one line for each thing that happens.

    Raises:
        UserError: another process serves it, params.yaml or the cron line is wrong, the server does not start.
        KeyboardInterrupt: it was ended; all child processes have ended, too.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with serve_note.alone(project) as note, contextlib.ExitStack() as stack:
        stack.callback(embedded.stop_unused, project)  # a killed run leaves the store running
        session, pause = _Session(project, schedule, report, note), 1.0
        while True:
            started = time.monotonic()
            try:
                session.run()
            except (_EndedError, UnansweredError, UserError) as error:
                if not session.started:
                    raise UserError(str(error)) from None
                pause = 1.0 if time.monotonic() - started > 300 else min(60.0, 2 * pause)
                report(f"{error}; starting again in {pause:.0f} s")
                time.sleep(pause)


class _Session:
    """The state of `serve`; each `run` lasts until the server or the runner ends."""

    def __init__(self, project: Path, schedule: RunSchedule, report: Callable[[str], None], note: TextIO):
        self.project, self.schedule, self.report, self._note = project, schedule, report, note
        self.params: Params = load(project / "params.yaml")
        self.started = False
        self._event = _Attempt("")
        self._due: _Attempt | None = None
        """The run that was due at the start."""
        self._reported: dict[str, str] | None = None

    def run(self) -> None:
        name = self.params.timeline
        with prefect_server.lasting(self.project, self.report) as server:
            server.wait()
            self.api = Api(server.url)
            serve_note.write(self._note, Serving(socket.gethostname(), os.getpid(), _now(), server.url, name))
            due = self._settle(server)
            # Runs that end from now on are reported, even if the server answers none of the first requests.
            self._report_last_run()
            with self._runner() as (runner, deployment):
                self._introduce(server, deployment)
                if due:
                    self.report(f"{due}: one run now")
                    self._due = _Attempt(self._start(deployment)).repeated()
                    self._event = _Attempt(notes.signature(self.params)).repeated()
                self._watch(server, runner, deployment)

    def _settle(self, server: prefect_server.Server) -> str | None:
        """Mark dead runs as crashed and cancel missed ones; returns why a run is due at once, if one is."""
        name = self.params.timeline
        deployment = schedules.deployment(self.api, name)
        ours = _tags(self.project)
        if deployment and not server.private and not set(ours) <= set(deployment["tags"]):
            raise UserError(
                f"the Prefect server at {server.url} has a deployment {schedules.FLOW}/{name} of another folder "
                f"or machine ({deployment['description'] or 'no description'}); end that process and delete it "
                f"(prefect deployment delete {schedules.FLOW}/{name}), or give the timeline another name"
            )
        crashed, missed = [], 0
        try:
            with locks.writing(self.project, name):
                crashed, free = runs.crash_dead(server, self.project, name), True
        except UserError:  # another process runs it now
            free = False
        if deployment:
            mine = {"deployments": {"id": {"any_": [deployment["id"]]}}}
            crashed += runs.crash(self.api, flow_runs={}, **mine)
            missed = self._cancel_missed(deployment["id"])
        if crashed:
            self.report(f"marked as crashed, because their processes have ended: {', '.join(crashed)}")
        left = notes.read(self.project, name)
        if free and left and left.outcome in (None, "interrupted"):
            return f"the run of {left.started} did not end"
        return f"{missed} runs were missed" if missed else None

    def _cancel_missed(self, deployment: str) -> int:
        """Cancel runs that were due while no process served the timeline; returns how many."""
        state = {
            "type": "CANCELLED",
            "name": "Cancelled",
            "message": "missed: no process served the timeline at that time",
        }
        now, count = datetime.now(UTC), 0
        while late := [
            run["id"]
            for run in schedules.runs(self.api, deployment, ["SCHEDULED"], "NEXT_SCHEDULED_START_TIME_ASC")
            if datetime.fromisoformat(run["next_scheduled_start_time"]) < now
        ]:
            for run in late:
                self.api.post(f"flow_runs/{run}/set_state", {"state": state, "force": True})
            count += len(late)
        return count

    @contextmanager
    def _runner(self) -> Iterator[tuple[subprocess.Popen[str], str]]:
        """The process that starts runs, and the id of the deployment that it registered."""
        log = layout.private(self.project) / "logs" / "runner.log"
        log.parent.mkdir(exist_ok=True)
        plan = {
            **asdict(self.schedule), "name": self.params.timeline, "project": str(self.project), "poll": 2,
            "description": f"timeline {self.params.timeline} of {self.project} on {socket.gethostname()}",
            "tags": _tags(self.project), "event": EVENT, "resource": self._resource(),
        }  # fmt: skip
        with log.open("ab") as file:
            runner = processes.start(
                "flows.processes.runner_process", json.dumps(plan), folder=self.project, log=file, own_session=True
            )
        try:
            assert runner.stdout
            first = runner.stdout.readline()
            if not first:
                raise _EndedError(f"the runner did not start (its log is {log})")
            yield runner, json.loads(first)["deployment"]
        finally:
            runner.terminate()
            processes.see_end(runner, within=STOP_SECONDS)

    def _introduce(self, server: prefect_server.Server, deployment: str) -> None:
        when = []
        if self.schedule.cron:
            when.append(f"at {self.schedule.cron!r} ({self.schedule.timezone})")
        if self.schedule.on_arrival:
            when.append("when params.yaml's stream has grown")
        self.started = True
        self.report(f"serving timeline {self.params.timeline} {' and '.join(when)}")
        shown = server.url.removesuffix("/api")
        self.report(f"Prefect's pages: {shown}/deployments/deployment/{deployment}; Ctrl-C ends serve")
        if server.process:
            self.report(f"sign in to the pages with the content of {prefect_server.sign_in_file(self.project)}")

    def _start(self, deployment: str) -> str:
        return str(self.api.post(f"deployments/{deployment}/create_flow_run", {})["id"])

    def _watch(self, server: prefect_server.Server, runner: subprocess.Popen[str], deployment: str) -> None:
        looked = 0.0
        while True:
            if server.process and server.process.poll() is not None:
                raise _EndedError(f"the Prefect server has ended (its log is {server.log})")
            if runner.poll() is not None:
                raise _EndedError("the runner has ended (its log is .chronomerge/logs/runner.log)")
            if time.monotonic() - looked >= LOOK_SECONDS:
                looked = time.monotonic()
                try:
                    self._repeat_due(deployment)
                    if self.schedule.on_arrival:
                        self._ask_for_run()
                    self._report_last_run()
                except UnansweredError as error:
                    self.report(f"{error}; trying again")
            time.sleep(1)

    def _repeat_due(self, deployment: str) -> None:
        """Start the run that was due again, with growing pauses, if Prefect cancelled it or it died."""
        if self._due is None or time.monotonic() < self._due.again:
            return
        run = self.api.get(f"flow_runs/{self._due.subject}")
        if run and schedules.came_to_nothing(run["state"]):
            self.report(f"run {run['name']} recorded nothing: starting it again")
            self._due = replace(self._due, subject=self._start(deployment)).repeated()
        elif not run or run["state"]["type"] not in schedules.GOING:
            self._due = None

    def _ask_for_run(self) -> None:
        """Send the event while a run is wanted, with growing pauses.

        The recorded state decides, not an earlier event, so a lost event does no harm.
        """
        wanted = self._wanted()
        if wanted is None:
            return
        if wanted != self._event.subject:
            self._event = _Attempt(wanted)
        if time.monotonic() < self._event.again:
            return
        self._event = self._event.repeated()
        self.report("the stream has grown: asking for a run")
        resource = {"prefect.resource.id": self._resource(), "prefect.resource.name": self.params.timeline}
        event = {"id": str(uuid.uuid4()), "occurred": _now(), "event": EVENT, "resource": resource}
        self.api.post("events", [event])

    def _wanted(self) -> str | None:
        """The signature of the stream, if it has arrivals that no run has tried and no run is under way.

        Arrivals that a run has tried and not recorded are for its retries, or for the next start of ``serve``.
        """
        try:
            todo = pending(self.project)
        except UserError:
            return None  # params.yaml is incomplete or wrong: the next scheduled run reports it
        if not todo.steps or locks.holder(self.project, todo.params.timeline):
            return None
        left, now = notes.read(self.project, todo.params.timeline), notes.signature(todo.params)
        return now if left is None or left.stream != now else None

    def _report_last_run(self) -> None:
        """Report the result of the newest run, once."""
        facts = schedules.facts(self.api, self.params.timeline)
        last = notes.corrected(self.project, self.params.timeline, facts.last) if facts else None
        if last and last != self._reported:
            if self._reported is not None:
                self.report(f"run {last['run']} {last['state']}: {last['message']}")
            self._reported = last
        elif self._reported is None:
            self._reported = {}

    def _resource(self) -> str:
        return f"chronomerge.timeline.{self.params.timeline}.{_tags(self.project)[1]}"


def _tags(project: Path) -> list[str]:
    """The tags that distinguish our deployment from those of other folders and machines."""
    return ["chronomerge", runs.tags(project, "")[2]]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
