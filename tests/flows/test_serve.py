"""Runs on a schedule: a real Prefect server, a real deployment, real kills."""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows import hooks, notes
from flows.cli import status
from flows.prefect import runs, schedules, step_summary
from flows.prefect.server import Server
from tasks import waits
from tasks.params import Hooks, load
from tasks.record import timelines
from tasks.storage import locks
from tests import postgres as postgresql
from tests import project as projects
from tests.flows.serving import FAR_AWAY, served, server_api
from tests.waiting import until

pytestmark = pytest.mark.slow


def under_way(folder: Path, timeline: str) -> bool:
    note = notes.read(folder, timeline)
    return note is not None and note.at.startswith("step 0: ") and note.ended is None


def test_a_killed_schedule_goes_on_and_nothing_piles_up(
    tmp_path: Path, prefect_api: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is triggered, a second refused; SIGKILL, three runs are missed; one run makes up for all of that, and when
    it is killed too, another."""
    folder = projects.make(tmp_path / "project", timeline="nightly", stream=[])
    api = server_api(prefect_api)
    for name, value in {**prefect_api, waits.ASK: "2"}.items():
        monkeypatch.setenv(name, value)
    with served(folder, *FAR_AWAY, **prefect_api) as serve:
        assert "timeline nightly at '0 2 1 1 *' (Europe/Berlin)" in serve.says("Prefect's pages")
        deployment = schedules.deployment(api, "nightly")
        assert deployment
        trigger = f"deployments/{deployment['id']}/create_flow_run"

        def state_of(run: dict[str, Any]) -> dict[str, Any]:
            return dict(api.get(f"flow_runs/{run['id']}")["state"])

        first = api.post(trigger, {})
        # What takes long comes while the run imports: its step is short, and must not be recorded when serve is killed.
        until(lambda: locks.holder(folder, "nightly"), serve.told)
        second = api.post(trigger, {})
        until(lambda: state_of(second)["type"] == "CANCELLED")
        assert state_of(second)["message"] == "Deployment concurrency limit reached."
        assert projects.chronomerge(folder, *FAR_AWAY, check=False, **prefect_api).returncode == 2
        until(lambda: under_way(folder, "nightly"), serve.told)
        shown = status.gather(folder)
        serve.kill()
    assert shown["at"].startswith("step 0: ")
    assert shown["schedule"]["running"] == first["name"]
    assert projects.tags(folder) == []
    assert state_of(first)["type"] == "RUNNING"
    assert status.gather(folder)["ended"]["outcome"] == "killed"
    late = {"type": "SCHEDULED", "state_details": {"scheduled_time": str(datetime.now(UTC) - timedelta(days=1))}}
    missed = [api.post(trigger, {"state": late}) for _ in range(3)]
    with served(folder, *FAR_AWAY, **prefect_api) as serve:
        serve.says("one run now")
        until(lambda: locks.holder(folder, "nightly"), serve.told)
        serve.kill_run()
        said = serve.says("completed: recorded state/nightly/0000")
        assert said.count("one run now") == said.count("recorded nothing: starting it again") == 1
        assert state_of(first)["type"] == "CRASHED"
        assert {state_of(run)["type"] for run in missed} == {"CANCELLED"}
        ran = schedules.runs(api, deployment["id"], ["COMPLETED"], "END_TIME_DESC")
        assert [run["state"]["message"] for run in ran] == ["recorded state/nightly/0000"]
        left = list(schedules.runs(api, deployment["id"], ["RUNNING", "PENDING"], "ID_DESC"))
        assert left == []
        serve.end()
    shown = status.gather(folder)["schedule"]
    assert shown["served"] is None
    assert shown["last"]["message"] == "recorded state/nightly/0000"


def test_only_dead_runs_of_this_folder_are_told_to_have_crashed(
    tmp_path: Path, prefect_api: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = server_api(prefect_api)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", prefect_api["PREFECT_API_AUTH_STRING"])
    here, copy = tmp_path / "here", tmp_path / "copy"
    (here / ".chronomerge").mkdir(parents=True)
    mine = runs.tags(here, "dead")
    shutil.copytree(here, copy)
    flow = api.post("flows/", {"name": "timeline"})["id"]

    def run(tags: list[str]) -> str:
        made = api.post("flow_runs/", {"flow_id": flow, "tags": tags, "state": {"type": "RUNNING"}})
        return str(made["id"])

    dead = run(mine)
    others = [run(runs.tags(here, "another")), run(runs.tags(copy, "dead"))]
    assert len(runs.crash_dead(Server(api.url), here, "dead")) == 1
    assert api.get(f"flow_runs/{dead}")["state"]["type"] == "CRASHED"
    assert [api.get(f"flow_runs/{one}")["state"]["type"] for one in others] == ["RUNNING", "RUNNING"]


def test_the_summary_of_a_step_says_what_changed(run: Path, prefect_api: dict[str, str]) -> None:
    first, second = (timelines.find(run, "tiny", step) for step in (1, 2))
    text = step_summary.text(second, first)
    assert text.startswith("# state/tiny/0002: second\n")
    assert "| in percent | state/tiny/0001 | now | change |" in text
    before, now = first.metrics["A_KA"], second.metrics["A_KA"]
    assert f"| accumulation (A_KA) | {before:.2f} | {now:.2f} | {now - before:+.2f} |" in text
    asked = {"artifacts": {"key": {"any_": ["step-tiny"]}}}
    published = server_api(prefect_api).post("artifacts/filter", asked)
    assert text in [artifact["data"] for artifact in published]


@pytest.fixture
def postgres() -> Iterator[str]:
    """The address of a database in a PostgreSQL server of this test's own."""
    programs = postgresql.programs()
    if not programs:
        pytest.skip("no PostgreSQL here (Debian: apt-get install postgresql)")
    with postgresql.serving(programs) as address:
        yield address


@pytest.mark.long
def test_an_arrival_starts_a_run_with_prefect_on_postgresql(tmp_path: Path, postgres: str) -> None:
    """By Prefect's event and trigger, on a server that serve starts itself."""
    folder = projects.make(tmp_path / "project", timeline="arrivals", stream=[])
    arrived = {"name": "vendor", "expert": "missing.safetensors"}
    hooks.trust(folder, Hooks.model_validate({"failed": HOOK}))
    with served(folder, "serve", "--on-arrival", PREFECT_SERVER_DATABASE_CONNECTION_URL=postgres) as serve:
        assert "when params.yaml's stream has grown" in serve.says("completed: recorded state/arrivals/0000")
        projects.write_params(folder, timeline="arrivals", stream=[arrived], hooks={"failed": HOOK})
        assert "missing.safetensors" in serve.says(" failed: ").splitlines()[-1]
        until((folder / "hooked").exists)
        assert "missing.safetensors" in json.loads((folder / "hooked").read_text())["CHRONOMERGE_ERROR"]
        serve.end()
    assert not (folder / ".chronomerge" / "prefect" / "prefect.db").exists()


HOOK = [
    sys.executable, "-c",
    "import json, os; print(json.dumps(dict(os.environ)), file=open('hooked.new', 'w'), flush=True); "
    "os.rename('hooked.new', 'hooked')",
]  # fmt: skip


def test_a_recorded_run_is_completed_though_prefect_calls_it_cancelled(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run / ".git", tmp_path / ".git")
    monkeypatch.setenv(notes.FLOW_RUN, "brisk-fox")
    with notes.recording(tmp_path, load(run / "params.yaml"), range(1, 3)):
        pass
    last = {"run": "brisk-fox", "state": "cancelled", "message": "Runner is shutting down.", "at": "2026-01-01"}
    shown = notes.corrected(tmp_path, "tiny", last)
    assert shown
    assert (shown["state"], shown["message"]) == ("completed", "recorded state/tiny/0001, state/tiny/0002")
    assert shown["prefect"] == "cancelled: Runner is shutting down."
    another = {**last, "run": "calm-owl"}
    assert notes.corrected(tmp_path, "tiny", another) == another
    with contextlib.suppress(KeyboardInterrupt), notes.recording(tmp_path, load(run / "params.yaml"), range(1, 3)):
        raise KeyboardInterrupt
    assert notes.corrected(tmp_path, "tiny", last) == last
