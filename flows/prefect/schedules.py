"""What a Prefect server knows of a timeline's schedule: the next run, the one under way, the last and its outcome."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from flows.prefect.api import Api

FLOW = "chronomerge"
"""The name of the flow `flows.schedule.scheduled`."""

GOING = ("SCHEDULED", "PENDING", "RUNNING")
"""The types of states of a run that has not ended."""

_PASSED_OVER = "Deployment concurrency limit reached."
"""What Prefect says of a run that was due while another lasted."""


@dataclass(frozen=True)
class ScheduleFacts:
    """Of one deployment; times with their zone."""

    deployment: str
    """Its id."""
    cron: str | None
    timezone: str | None
    next: datetime | None
    running: str | None
    """The name of the run under way."""
    last: dict[str, str] | None
    """``run``, ``state``, ``message`` and ``at`` of the newest run that has ended."""


def facts(api: Api, timeline: str) -> ScheduleFacts | None:
    """None where the server has no deployment of the timeline.

    Raises:
        UnansweredError: no answer.
    """
    deployed = deployment(api, timeline)
    if deployed is None:
        return None
    schedule: dict[str, Any] = next((one["schedule"] for one in deployed["schedules"] if one["active"]), {})
    cron, timezone = schedule.get("cron"), schedule.get("timezone") or ("UTC" if schedule.get("cron") else None)
    zone = ZoneInfo(timezone or "UTC")
    due = next(runs(api, deployed["id"], ["SCHEDULED"], "NEXT_SCHEDULED_START_TIME_ASC"), None)
    running = next(runs(api, deployed["id"], ["RUNNING", "PENDING"], "START_TIME_DESC"), None)
    ended = runs(api, deployed["id"], ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"], "END_TIME_DESC")
    last = next((run for run in ended if run["state"]["message"] != _PASSED_OVER), None)
    return ScheduleFacts(
        deployed["id"], cron, timezone,
        datetime.fromisoformat(due["next_scheduled_start_time"]).astimezone(zone) if due else None,
        running["name"] if running else None,
        _ended(last, zone) if last else None,
    )  # fmt: skip


def deployment(api: Api, timeline: str) -> dict[str, Any] | None:
    """The deployment of a timeline as the server has it."""
    known: dict[str, Any] | None = api.get(f"deployments/name/{FLOW}/{timeline}")
    return known


def runs(api: Api, deployment: str, types: list[str], sort: str) -> Iterator[dict[str, Any]]:
    """The first 200 runs of a deployment in states of some types."""
    asked = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": types}}}}
    yield from api.post("flow_runs/filter", {**asked, "sort": sort})


def came_to_nothing(state: dict[str, Any]) -> bool:
    """Whether a run has ended without a word of its own: passed over, or dead."""
    return state["type"] == "CRASHED" or state["message"] == _PASSED_OVER


def _ended(run: dict[str, Any], zone: ZoneInfo) -> dict[str, str]:
    state = run["state"]
    at = datetime.fromisoformat(state["timestamp"]).astimezone(zone)
    message = " ".join((state["message"] or "").split())
    return {
        "run": run["name"], "state": state["name"].lower(), "message": message,
        "at": at.isoformat(timespec="seconds"),
    }  # fmt: skip
