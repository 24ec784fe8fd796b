"""A real grid: nothing trained twice, killed and resumed, cells that fail, and cells equal to timelines alone."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterName,
)
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tasks.storage import embedded
from tests import project as projects
from tests.project import chronomerge, deployed
from tests.waiting import until

pytestmark = pytest.mark.slow

GRID = {"init": ["zs", "ema"], "deploy": ["ema"], "technique": ["linear", "own.py:Own"], "references": []}
CELLS = ("zs-ema-linear", "ema-ema-linear", "zs-ema-Own", "ema-ema-Own")
BROKEN = '''
from tasks.merge.techniques.linear import Linear


class Own(Linear):
    """A technique of the user's own."""

    def finalise(self, state, summary):
        raise RuntimeError("a mistake in own.py")
'''


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, prefect_api: dict[str, str]) -> Path:
    """A project whose grid was killed in the middle, then run again: all is there but for a technique that fails."""
    folder = projects.make(tmp_path_factory.mktemp("grid") / "project", grid=GRID)
    (folder / "own.py").write_text(BROKEN)
    killed = projects.start(folder, "grid", "--parallel", "2", **prefect_api)
    until(lambda: killed.poll() is not None or projects.tags(folder))
    assert killed.poll() is None, "ended before it recorded anything"
    workers = [
        child
        for child in psutil.Process(killed.pid).children()
        if "flows.processes.cell_worker_process" in child.cmdline()
    ]
    assert len(workers) == 2
    projects.kill(killed)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "cell workers outlive the grid"

    failed = chronomerge(folder, "grid", "--parallel", "2", check=False, **prefect_api)
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "2 cells failed" in failed.stdout
    assert "a mistake in own.py" in failed.stdout
    assert str(folder / "report" / "index.html") in failed.stdout
    return folder


@pytest.mark.long
def test_a_polite_end_is_quick(tmp_path: Path, prefect_api: dict[str, str]) -> None:
    """SIGTERM to the grid alone, in the middle of cells that would take their time."""
    base = {"steps": 100_000, "batch_size": 16, "lr": 1e-3}
    folder = projects.make(tmp_path / "project", grid=GRID, base={**projects.PARAMS["base"], "train": base})
    process = projects.start(folder, "grid", "--parallel", "2", "--technique", "linear", **prefect_api)
    training = ".chronomerge/unfinished/*/train"
    until(lambda: process.poll() is not None or list(folder.glob(training)))
    assert process.poll() is None, "ended before it began"
    workers = psutil.Process(process.pid).children()
    process.terminate()
    assert process.wait(60) != 0
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not [one for one in alive if "flows.processes.cell_worker_process" in one.cmdline()]
    until(lambda: embedded.running(folder) is None)


def trainings(folder: Path) -> set[tuple[Any, ...]]:
    """The trainings that really ran: their results, and how long each took, which no second run has exactly."""
    found = set()
    for tag in projects.tags(folder):
        manifest = json.loads(projects.git(folder, "show", f"{tag}:manifest.json"))
        expert = manifest["outputs"]["data/step/expert.safetensors"]["md5"]
        found.add((expert, manifest["seconds"]["train"]))
    return found


def test_trainings_are_as_many_as_planned(grid: Path) -> None:
    plan = json.loads(chronomerge(grid, "grid", "--plan", "--json").stdout)
    # The base, step 1, and step 2 from the base and from each technique's EMA_1, of which one failed to be made.
    assert plan["work"]["train"] == {"separate": 12, "shared": 5, "pending": 1}
    assert len(trainings(grid)) == 4
    assert plan["estimate"]["seconds"] > 0
    assert plan["estimate"]["report"] > 0
    told = chronomerge(grid, "grid", "--plan").stdout
    assert re.search(
        r"about .* to the last state, .*\n  then [\d.]+ \w+ to end the servers and for the report: .* in all\n", told
    )


def test_a_failed_cell_stops_no_other(grid: Path) -> None:
    recorded = {name: len(deployed(grid, f"tiny-{name}-s0")) for name in CELLS}
    assert recorded == {"zs-ema-linear": 3, "ema-ema-linear": 3, "zs-ema-Own": 1, "ema-ema-Own": 1}


def test_a_cell_equals_the_same_timeline_run_alone(grid: Path, run: Path) -> None:
    cell, alone = deployed(grid, "tiny-ema-ema-linear-s0"), deployed(run)
    assert list(cell.values()) == list(alone.values())
    assert len(alone) == 3


def test_what_is_recorded_is_not_run_again(grid: Path, prefect_api: dict[str, str]) -> None:
    assert "nothing to do" in chronomerge(grid, "grid", "--technique", "linear", **prefect_api).stdout
    assert chronomerge(grid, "grid", "--technique", "nothing", check=False).returncode == 2


def test_the_report_shows_the_cells(grid: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(grid / "report" / "metrics.parquet")
    assert set(table["timeline"]) == {f"tiny-{name}-s0" for name in CELLS}
    assert set(table["technique"]) == {"linear", "Own"}
    chronomerge(grid, "report", "--to", str(tmp_path))  # without options: the grid in params.yaml
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "metrics.parquet"), table)


@pytest.mark.usefixtures("grid")
def test_prefect_shows_the_summary_beside_the_grid(prefect_api: dict[str, str]) -> None:
    names = {PREFECT_API_URL: "PREFECT_API_URL", PREFECT_API_AUTH_STRING: "PREFECT_API_AUTH_STRING"}
    settings = {setting: prefect_api[name] for setting, name in names.items()}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=["grid tiny"])))
        mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id for run in runs]))
        found = {one.key: one for one in client.read_artifacts(artifact_filter=mine)}
    assert "ema + ema, linear" in found["cells"].data
    assert "# tiny" in found["summary"].data
