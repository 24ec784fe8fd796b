"""A month as it is lived: an inbox looked into by day, a run started by night, and what is broken meanwhile."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil

from flows.prefect import schedules
from tasks import layout
from tasks.record import timelines
from tests import project as projects
from tests.flows.month import MOMENTS, Day, Kind, Trouble
from tests.flows.serving import FAR_AWAY, Serve, server_api
from tests.project import chronomerge
from tests.record.faults import Fault, FaultPlan
from tests.waiting import until

IMPATIENT = {"AWS_MAX_ATTEMPTS": "2"}
"""Clients of the store try twice."""
AWAY = Fault("drop")
WORKER = "flows.processes.run_process"
"""What does a night's work, a child of Prefect's process of the run."""
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Month:
    """A project as its people find it day by day, and a line for each night."""

    def __init__(self, folder: Path, timeline: str, outside: Path, plan: FaultPlan, environment: dict[str, str]):
        """``outside`` has all drops to come, ``plan`` is that of the proxy before the store."""
        self.folder, self.timeline, self.outside, self.plan = folder, timeline, outside, plan
        self.environment = {**environment, **IMPATIENT}
        self.inbox = folder.parent / "inbox"
        self.inbox.mkdir()
        self.api = server_api(environment)
        self.serve: Serve | None = None
        self.verdicts: list[tuple[str, str, str]] = []
        """What looks into the inbox have told: drop, outcome, reason."""
        self._kinds: dict[str, Kind] = {}
        self._tags: Sequence[str] = []

    def live(self, day: Day) -> None:
        """Live through a day and the night after it, and say what happened."""
        started = time.monotonic()
        for drop in day.drops:
            shutil.copytree(self.outside / drop.name, self.inbox / drop.name)
            self._kinds[drop.name] = drop.kind
        happened = self._look(day)
        self.plan.faults.clear()
        if day.rollback:
            newest = timelines.lineage(self.folder, self.timeline)[-1]
            chronomerge(self.folder, "rollback", str(newest.step - 1), **self.environment)
            happened.append(f"back to {newest.step - 1:04d}")
        happened += self._night(day) if day.served else self._missed()
        tags = projects.tags(self.folder)
        new = [tag.rpartition("/")[2] for tag in tags if tag not in self._tags]
        self._tags = tags
        happened += [f"{' and '.join(new)} recorded"] if new else []
        took = time.monotonic() - started
        print(f"night {day.number:02d}  {' · '.join(happened) or 'nothing to do'}  ({took:.0f} s)", flush=True)

    def _look(self, day: Day) -> list[str]:
        command = ("inbox", str(self.inbox), "--json")
        if day.trouble is Trouble.INBOX:
            process = projects.start(self.folder, *command, **self.environment)
            pointers = self._pointers()
            until(lambda: self._looked(day.moment, pointers))
            assert process.poll() is None
            projects.kill(process)
            return [f"{day.trouble.value} {day.moment}"]
        done = chronomerge(self.folder, *command, check=False, **self.environment)
        if self.plan.faults and done.returncode == 2:
            assert "cannot be reached" in done.stderr
            return ["inbox not looked into, for want of the store"]
        found = json.loads(done.stdout)
        assert done.returncode == (2 if found["refused"] else 0), done.stderr
        assert not found["waiting"]
        assert not found["changed"]
        new = [(one["name"], became, one["why"]) for became in ("taken", "refused") for one in found[became]]
        self.verdicts += new
        return [f"{name} {became} ({self._kinds[name].value})" for name, became, _ in new]

    def _looked(self, moment: str, pointers: int) -> bool:
        arriving = self.folder / ".chronomerge" / "arriving"
        return {
            "while copying": lambda: any(arriving.glob("*-*")),
            "once copied": lambda: any(arriving.glob("*-*/kept/*")),
            "once kept": lambda: self._pointers() > pointers,
        }[moment]()

    def _pointers(self) -> int:
        return len(list((self.folder / layout.ARRIVALS).glob("*.dvc")))

    def _missed(self) -> list[str]:
        """A run that Prefect's scheduler has planned, and nobody starts."""
        late = {"type": "SCHEDULED", "state_details": {"scheduled_time": str(datetime.now(UTC) - timedelta(days=1))}}
        self.api.post(f"deployments/{self._deployment()}/create_flow_run", {"state": late})
        return ["nobody serves"]

    def _night(self, day: Day) -> list[str]:
        happened = self._served()
        assert self.serve
        run = self.api.post(f"deployments/{self._deployment()}/create_flow_run", {})

        def outcome() -> str | None:
            time.sleep(0.4)
            found = str(self.api.get(f"flow_runs/{run['id']}")["state"]["type"])
            return found if found in ENDED else None

        if day.trouble and day.moment in MOMENTS:
            until(lambda: self._came_to(day.moment), self.serve.told)
            self._disturb(day.trouble)
            happened.append(f"{day.trouble.value} {day.moment}")
            if not self.serve:
                return happened
        ended = str(until(outcome, self.serve.told))
        return happened if ended == "COMPLETED" else [*happened, ended.lower()]

    def _served(self) -> list[str]:
        """Have it served; of what serving makes up for, the outcome."""
        if self.serve:
            return []
        self.serve = Serve(self.folder, *FAR_AWAY, **self.environment)
        self.serve.says("Prefect's pages")
        if not self._tags:
            return []
        self.serve.says(": one run now")
        self.serve.says(" completed: ")
        return ["served again"]

    def runs(self) -> Counter[str]:
        """How many runs of the schedule ended how, says Prefect."""
        found = schedules.runs(self.api, self._deployment(), list(ENDED), "END_TIME_DESC")
        return Counter(run["state"]["type"] for run in found)

    def _deployment(self) -> str:
        deployment = schedules.deployment(self.api, self.timeline)
        assert deployment
        return str(deployment["id"])

    def _came_to(self, moment: str) -> bool:
        """Whether the work of the night has come so far."""
        if moment == "at its start":
            return self._process(WORKER) is not None
        homes = (self.folder / ".chronomerge" / "work" / self.timeline).glob("[0-9]*-*")
        made = {"once trained": layout.EXPERT, "once merged": layout.DEPLOYED, "once evaluated": "metrics.json"}
        alive = [home for home in homes if psutil.pid_exists(int(home.name.partition("-")[2]))]
        return any((home / made.get(moment, "")).exists() for home in alive)

    def _process(self, module: str) -> psutil.Process | None:
        """The process that runs a module for what serves."""
        assert self.serve
        for process in psutil.Process(self.serve.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if module in process.cmdline():
                    return process
        return None

    def _disturb(self, trouble: Trouble) -> None:
        worker = self._process(WORKER)
        assert worker
        assert self.serve
        match trouble:
            case Trouble.RUN:
                worker.kill()
            case Trouble.FLOW:
                parent = worker.parent()
                assert parent
                parent.kill()
            case Trouble.SERVE:
                self.serve.kill()
                self.serve = None
            case Trouble.BLINK | Trouble.OUTAGE:
                self.plan.faults.append(AWAY)
        if trouble is Trouble.BLINK:
            seen = len(self.plan.happened)
            until(lambda: len(self.plan.happened) > seen + 2)
            self.plan.faults.clear()

    @contextmanager
    def at_its_end(self) -> Iterator[None]:
        """End what serves, however the month goes."""
        try:
            yield
            assert self.serve
            # Prefect's runner, told to end, calls a run cancelled whose process has not quite gone, completed or not.
            until(lambda: self._process("prefect.engine") is None)
            self.serve.end()
        finally:
            if self.serve and self.serve.process.poll() is None:
                self.serve.kill()
