"""``chronomerge serve``: a Prefect server and a deployment of the timeline's run, kept up until somebody ends it.

What can break is a process of its own, tied to this one: the server, the runner that starts runs, the runs. Where one
of the first two ends, all starts over; nothing is kept here that the next start would miss.
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
"""The Prefect event that says that a stream has grown; the deployment starts a run on it."""

LOOK_SECONDS = 5.0
"""Between two looks at params.yaml, and two questions to the server."""
STOP_SECONDS = 60
"""How long a run may take to end politely."""


@dataclass(frozen=True)
class Plan:
    """When runs are due."""

    cron: str | None
    timezone: str
    on_arrival: bool


@dataclass(frozen=True)
class _Asked:
    """What was asked for (a run for a stream, a run by its id), and when it is time to ask again."""

    what: str
    again: float = 0.0
    pause: float = field(default_factory=lambda: waits.seconds(waits.ASK)[0])

    def once_more(self) -> _Asked:
        return _Asked(self.what, time.monotonic() + self.pause, 2 * self.pause)


class _EndedError(Exception):
    """A process that should last has ended."""


def serve(project: Path, plan: Plan, say: Callable[[str], None]) -> None:
    """Serve a project until SIGTERM or Ctrl-C; ``say`` hears what happens, a line each time.

    Raises:
        UserError: somebody serves it already, params.yaml or the cron line is wrong, the server does not start.
        KeyboardInterrupt: it was ended; runs and helpers have ended, too.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with serve_note.alone(project) as note, contextlib.ExitStack() as stack:
        stack.callback(embedded.stop_unused, project)  # a killed run leaves the store running
        session, pause = _Session(project, plan, say, note), 1.0
        while True:
            started = time.monotonic()
            try:
                session.run()
            except (_EndedError, UnansweredError, UserError) as error:
                if not session.started:
                    raise UserError(str(error)) from None
                pause = 1.0 if time.monotonic() - started > 300 else min(60.0, 2 * pause)
                say(f"{error}; starting over in {pause:.0f} s")
                time.sleep(pause)


class _Session:
    """What serves; each `run` of it lasts until one of its processes ends."""

    def __init__(self, project: Path, plan: Plan, say: Callable[[str], None], note: TextIO):
        self.project, self.plan, self.say, self._note = project, plan, say, note
        self.params: Params = load(project / "params.yaml")
        self.started = False
        self._asked = _Asked("")
        self._due: _Asked | None = None
        """The run that was due at once."""
        self._told: dict[str, str] | None = None

    def run(self) -> None:
        name = self.params.timeline
        with prefect_server.lasting(self.project, self.say) as server:
            server.wait()
            self.api = Api(server.url)
            serve_note.write(self._note, Serving(socket.gethostname(), os.getpid(), _now(), server.url, name))
            due = self._settle(server)
            self._tell()  # what ends from now on is news, though the server may answer none of the first looks
            with self._runner() as (runner, deployment):
                self._introduce(server, deployment)
                if due:
                    self.say(f"{due}: one run now")
                    self._due = _Asked(self._start(deployment)).once_more()
                    self._asked = _Asked(notes.signature(self.params)).once_more()
                self._watch(server, runner, deployment)

    def _settle(self, server: prefect_server.Server) -> str | None:
        """Tell Prefect which runs are dead, and forget those that were missed; returns why one is due at once."""
        name = self.params.timeline
        found = schedules.deployment(self.api, name)
        ours = _tags(self.project)
        if found and not server.private and not set(ours) <= set(found["tags"]):
            raise UserError(
                f"the Prefect server at {server.url} has a deployment {schedules.FLOW}/{name} of another folder "
                f"or machine ({found['description'] or 'no description'}); end that and delete it (prefect deployment "
                f"delete {schedules.FLOW}/{name}), or give the timeline another name"
            )
        crashed, missed = [], 0
        try:
            with locks.writing(self.project, name):
                crashed, free = runs.crash_dead(server, self.project, name), True
        except UserError:  # somebody runs it just now
            free = False
        if found:
            mine = {"deployments": {"id": {"any_": [found["id"]]}}}
            crashed += runs.crash(self.api, flow_runs={}, **mine)
            missed = self._forget_missed(found["id"])
        if crashed:
            self.say(f"told Prefect that these crashed, nobody runs them any more: {', '.join(crashed)}")
        left = notes.read(self.project, name)
        if free and left and left.outcome in (None, "interrupted"):
            return f"the run of {left.started} did not end"
        return f"{missed} runs were missed" if missed else None

    def _forget_missed(self, deployment: str) -> int:
        """Cancel what was due while nobody served; returns how many."""
        state = {"type": "CANCELLED", "name": "Cancelled", "message": "missed: nobody served the timeline then"}
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
        """The process that starts runs, and the id of the deployment it has registered."""
        log = layout.private(self.project) / "logs" / "runner.log"
        log.parent.mkdir(exist_ok=True)
        plan = {
            **asdict(self.plan), "name": self.params.timeline, "project": str(self.project), "poll": 2,
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
        if self.plan.cron:
            when.append(f"at {self.plan.cron!r} ({self.plan.timezone})")
        if self.plan.on_arrival:
            when.append("when params.yaml's stream has grown")
        self.started = True
        self.say(f"serving timeline {self.params.timeline} {' and '.join(when)}")
        shown = server.url.removesuffix("/api")
        self.say(f"Prefect's pages: {shown}/deployments/deployment/{deployment}; Ctrl-C ends this")
        if server.process:
            self.say(f"the pages ask for what is in {prefect_server.sign_in_file(self.project)}")

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
                    self._see_to_due(deployment)
                    if self.plan.on_arrival:
                        self._ask_for_run()
                    self._tell()
                except UnansweredError as error:
                    self.say(f"{error}; asking again")
            time.sleep(1)

    def _see_to_due(self, deployment: str) -> None:
        """Start the run that was due once more, ever later, where Prefect has passed it over or it has died."""
        if self._due is None or time.monotonic() < self._due.again:
            return
        run = self.api.get(f"flow_runs/{self._due.what}")
        if run and schedules.came_to_nothing(run["state"]):
            self.say(f"run {run['name']} came to nothing: once more")
            self._due = replace(self._due, what=self._start(deployment)).once_more()
        elif not run or run["state"]["type"] not in schedules.GOING:
            self._due = None

    def _ask_for_run(self) -> None:
        """Send the event where a run is wanted, and again, ever later, while none has come of it.

        The state of things decides, not what has happened: an event that is lost loses nothing.
        """
        wanted = self._wanted()
        if wanted is None:
            return
        if wanted != self._asked.what:
            self._asked = _Asked(wanted)
        if time.monotonic() < self._asked.again:
            return
        self._asked = self._asked.once_more()
        self.say("the stream has grown: asking for a run")
        resource = {"prefect.resource.id": self._resource(), "prefect.resource.name": self.params.timeline}
        event = {"id": str(uuid.uuid4()), "occurred": _now(), "event": EVENT, "resource": resource}
        self.api.post("events", [event])

    def _wanted(self) -> str | None:
        """The signature of the stream, if it has arrivals that no run has tried yet, and none is under way.

        What a run has tried and not brought to its end is for its own retries, or for the next start of all this.
        """
        try:
            todo = pending(self.project)
        except UserError:
            return None  # params.yaml is being written, or wrong: the next scheduled run says so
        if not todo.steps or locks.holder(self.project, todo.params.timeline):
            return None
        left, now = notes.read(self.project, todo.params.timeline), notes.signature(todo.params)
        return now if left is None or left.stream != now else None

    def _tell(self) -> None:
        """Say what became of the newest run, once."""
        found = schedules.facts(self.api, self.params.timeline)
        last = notes.corrected(self.project, self.params.timeline, found.last) if found else None
        if last and last != self._told:
            if self._told is not None:
                self.say(f"run {last['run']} {last['state']}: {last['message']}")
            self._told = last
        elif self._told is None:
            self._told = {}

    def _resource(self) -> str:
        return f"chronomerge.timeline.{self.params.timeline}.{_tags(self.project)[1]}"


def _tags(project: Path) -> list[str]:
    """What marks our deployment among those of other folders and machines."""
    return ["chronomerge", runs.tags(project, "")[2]]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
