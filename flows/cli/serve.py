"""``chronomerge serve``: runs on a schedule, and when something arrives."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from flows.cli import options
from flows.cli.options import Trust
from flows.cli.terminal import out
from tasks.errors import UserError


def serve(
    cron: Annotated[
        str | None, typer.Option(help='When runs are due: minute hour day month weekday ("0 2 * * *").')
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Of the cron line (Europe/Berlin) [this machine's].")
    ] = None,
    on_arrival: Annotated[bool, typer.Option("--on-arrival", help="When params.yaml's stream has grown.")] = False,
    trust: Trust = False,
) -> None:
    """Keep running: start what is pending at given times, or when something arrives, until Ctrl-C or SIGTERM."""
    from flows.serve import RunSchedule
    from flows.serve import serve as serve_project

    if not (cron or on_arrival):
        raise UserError("when should runs start? --cron '0 2 * * *', --on-arrival, or both")
    project = options.project()
    os.chdir(project)  # paths in params.yaml start there
    options.settle_trust(project, trust)
    schedule = RunSchedule(checked(cron) if cron else None, zone(timezone), on_arrival)
    try:
        serve_project(project, schedule, lambda line: out.print(f"{_clock(schedule.timezone)} {line}"))
    except KeyboardInterrupt:
        out.print("ended; what has finished is stored, and the next start resumes")


def checked(cron: str) -> str:
    """A cron line that Prefect accepts.

    Raises:
        UserError: Prefect refuses it.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from prefect.client.schemas.schedules import CronSchedule

    try:
        return CronSchedule(cron=cron).cron
    except ValueError:
        raise UserError(
            f"--cron {cron!r} is no cron line; expected five fields: minute hour day month weekday, as '0 2 * * *'"
        ) from None


def zone(name: str | None) -> str:
    """A time zone by its name; that of this machine where none is given.

    Raises:
        UserError: there is no such zone.
    """
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    name = name or _own_zone()
    try:
        return ZoneInfo(name).key
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UserError(f"--timezone {name!r}: no such time zone; expected one as Europe/Berlin or UTC") from None


def _own_zone() -> str:
    import tzlocal

    return tzlocal.get_localzone_name()


def _clock(timezone: str) -> str:
    from datetime import datetime
    from zoneinfo import ZoneInfo

    return datetime.now(ZoneInfo(timezone)).strftime("%Y-%m-%d %H:%M:%S %Z")
