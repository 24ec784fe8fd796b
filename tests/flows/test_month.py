"""A month of nightly runs with all that goes wrong in one, against a month in which nothing does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.prefect import runs
from tasks import waits
from tasks.params import load
from tasks.record import heads, timelines
from tasks.storage import store
from tasks.storage.dvc_config import Remote
from tests import project as projects
from tests.flows.daily_life import Month
from tests.flows.month import Kind, Trouble, arrivals, drawn
from tests.project import chronomerge, git
from tests.record.faults import FaultPlan, proxied

pytestmark = pytest.mark.long

SEED = 1
TIMELINE = "month"
PARAMS: dict[str, Any] = {
    "timeline": TIMELINE,
    "stream": [],
    "base": {**projects.PARAMS["base"], "train": {"steps": 60, "batch_size": 16, "lr": 1e-3}},
    "gate": {"require": ["retention_drop <= 25%"], "held": "skip"},
    "store": {"remote": "shared", "git": None},
}
ENDS = {Trouble.OUTAGE: "FAILED", Trouble.FLOW: "CRASHED", Trouble.SERVE: "CRASHED"}
"""What becomes of the runs that are disturbed for good."""
HASTE = {waits.RUN: "1,1", waits.RECORD: "0.1,0.1,0.1"}
"""Short waits before another try: there is no patience for minutes here."""


def project(folder: Path, remote: Remote) -> Path:
    """A project with a store as on another machine."""
    projects.make(folder, **PARAMS)
    projects.share(folder, remote)
    return folder


def undisturbed(days: int, folder: Path, outside: Path, environment: dict[str, str]) -> Path:
    """The same arrivals and the same rollback in a project, and nothing else; all drops are made on the way."""
    projects.module(folder, "tests.flows.calm_month", str(days), str(SEED), str(outside), **environment)
    return folder


def story(folder: Path) -> dict[str, Any]:
    """All that a timeline has come to, but for what tells one month from another: when, how fast, and with what
    arrivals known beyond the step, which depends on the night that a step was made up for."""
    found: dict[str, Any] = {}
    tags = {state.commit: state.tag for state in timelines.states(folder, TIMELINE)}
    for state in timelines.states(folder, TIMELINE):
        manifest = state.manifest.model_dump(exclude={"recorded", "seconds", "elapsed", "starting", "code"})
        if back := state.manifest.rollback:
            manifest["rollback"] = (back.to, back.left)
        params = {**state.params, "stream": state.params["stream"][: state.step]}
        rows = git(folder, "ls-tree", "-r", state.commit).splitlines()
        files = {path: blob for blob, path in (row.split(maxsplit=2)[2].split("\t") for row in rows)}
        for path in ("manifest.json", "params.yaml", ".dvc/config"):  # each month has a store of its own
            files.pop(path)
        parents = git(folder, "rev-parse", f"{state.commit}^@").splitlines()
        made_from = [tags[commit] for commit in parents if commit in tags]
        found[state.tag] = {"manifest": manifest, "params": params, "files": files, "from": made_from}
    here = heads.local(folder, TIMELINE)
    assert here.branch
    assert here.pointer
    return {**found, "branch": tags[here.branch], "deployed": tags[here.pointer], "decisions": here.decisions}


def strays(folder: Path) -> list[str]:
    """Working folder and command line of the processes that are about a folder."""
    found = psutil.process_iter(["cwd", "cmdline"])
    about = [" ".join([one.info["cwd"] or "", *(one.info["cmdline"] or ())]) for one in found]
    return [line for line in about if str(folder) in line]


@pytest.mark.parametrize("nights", [8, 30])
def test_nights_with_all_that_goes_wrong_end_as_those_without(
    nights: int, tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    """Every arrival once, every bad one refused with its reason, and the states of a month without any trouble."""
    environment = {**prefect_api, **HASTE}
    days = drawn(nights, SEED)
    good = [drop.name for part in arrivals(days) for drop in part]
    harmful = [drop.name for day in days for drop in day.drops if drop.kind is Kind.HARMFUL]
    bad = {drop.name: drop.kind.reason for day in days for drop in day.drops if drop.kind.reason}
    (tmp_path / "s3" / ".dvc").mkdir(parents=True)
    plan = FaultPlan()
    with (
        store.open_store(tmp_path / "s3", "embedded") as own,
        proxied(own, FaultPlan(), prefix="quiet") as one,
        proxied(own, plan) as another,
    ):
        outside = tmp_path / "outside"
        quiet = undisturbed(nights, project(tmp_path / "quiet", one), outside, environment)
        month = Month(project(tmp_path / "month", another), TIMELINE, outside, plan, environment)
        with month.at_its_end():
            for day in days:
                month.live(day)
        assert not strays(month.folder)
        doctor = chronomerge(month.folder, "doctor", check=False)
        assert doctor.returncode == 0, doctor.stdout

    expected, found = story(quiet), story(month.folder)
    assert found.keys() == expected.keys()
    for key, what in expected.items():
        assert found[key] == what, key
    assert [one.manifest.promoted for one in timelines.states(month.folder, TIMELINE)
            if one.manifest.arrival in harmful] == [False]  # fmt: skip

    assert [arrival.name for arrival in load(month.folder / "params.yaml").stream] == good
    assert [state.manifest.arrival for state in timelines.lineage(month.folder, TIMELINE)] == ["base", *good]
    assert sorted(name for name, kind, _ in month.verdicts if kind == "taken") == good
    refused = {name: why for name, kind, why in month.verdicts if kind == "refused"}
    assert sorted(refused) == sorted(bad) == [name for name, kind, _ in month.verdicts if kind == "refused"]
    assert all(bad[name] in why for name, why in refused.items()), refused
    assert len(list((month.folder / ".chronomerge" / "refused").iterdir())) == len(bad)

    unended = {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING"]}}}
    mine = {"tags": {"any_": runs.tags(month.folder, TIMELINE)[2:]}}
    assert month.api.post("flow_runs/filter", {"flow_runs": {**unended, **mine}}) == []
    missed = sum(not day.served for day in days)
    outcomes = Counter(ENDS[day.trouble] for day in days if day.trouble in ENDS)
    ended = nights - missed - outcomes.total() + 1  # and what serve made up for
    assert month.runs() == outcomes + Counter({"COMPLETED": ended, "CANCELLED": missed})
