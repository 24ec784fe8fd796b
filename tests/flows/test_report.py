"""The report on a timeline that has run for real: by the command, in a clone, for DVC and for Prefect."""

import json
import math
import subprocess
import uuid
from pathlib import Path

import pandas as pd
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)

from flows.prefect import artifacts
from tasks.report import plain, records, tidy, vectors
from tests import project as projects
from tests.project import chronomerge, git

pytestmark = pytest.mark.slow


def test_the_command_writes_a_page_its_figures_and_its_table(run: Path, tmp_path: Path) -> None:
    done = chronomerge(run, "report", "--json", "--to", str(tmp_path / "report"))
    written = json.loads(done.stdout)
    assert written["left_out"] == []
    assert Path(written["page"]) == tmp_path / "report" / "index.html"
    names = {Path(path).stem for path in written["figures"]}
    assert names == {"over-time", "plane", "steps-datasets", "task-vectors", "time-and-bytes"}
    assert all(Path(path).stat().st_size for path in (written["page"], *written["figures"], *written["tables"]))
    csv, parquet = (Path(path) for path in written["tables"])
    table = pd.read_parquet(parquet)
    pd.testing.assert_frame_equal(table, pd.read_csv(csv, keep_default_na=False), check_dtype=False)
    html = Path(written["page"]).read_text()
    assert "git checkout state/tiny/0002 &amp;&amp; dvc checkout" in html
    assert git(run, "rev-parse", "main")[:12] in html


def test_the_table_says_what_the_states_say(run: Path) -> None:
    """``states`` reads manifests and metrics by another way."""
    table = tidy.table(records.read(run, plain.cells(run, ["tiny"])), {})
    for row in json.loads(chronomerge(run, "states", "--json").stdout):
        here = table[table["tag"] == row["tag"]]
        values = here[here["dataset"] == ""].set_index("metric")["value"]
        for metric in ("A_KA", "A_ZS", "geometric_mean"):
            assert values[metric] == row[metric]
        assert values["bytes_new"] == row["bytes"]["new"]
        assert values["budget_samples"] == row["budget"]["samples"]
        assert values["seconds:train"] == row["seconds"]["train"]
        assert values["elapsed"] > row["seconds"]["train"] + row["seconds"]["evaluate"]
        top1 = here[here["metric"] == "top1"].set_index("dataset")["value"]
        assert top1.to_dict() == row["top1"]
        if row["step"]:
            assert values["ACC"] == pytest.approx(sum(top1[["first", "second"][: row["step"]]]) / row["step"])


def test_a_clone_without_weights_says_what_brings_them(run: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(run), "clone")
    found = records.read(tmp_path / "clone", plain.cells(tmp_path / "clone", ["tiny"]))
    (missing,) = vectors.of(tmp_path / "clone", found).missing
    assert missing.command == "for t in 0 1 2; do chronomerge restore $t --timeline tiny; done"
    (known,) = vectors.of(run, found).known
    assert known.geometry.arrivals == ("first", "second")
    assert not math.isnan(known.geometry.cosines[0, 1])


def dvc(folder: Path, *args: str) -> str:
    done = subprocess.run([projects.program("dvc"), *args], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_dvc_compares_metrics_and_plots_of_states(run: Path, tmp_path: Path) -> None:
    changed = json.loads(dvc(run, "metrics", "diff", "state/tiny/0000", "state/tiny/0002", "--json"))
    new = json.loads(git(run, "show", "state/tiny/0002:metrics.json"))
    assert changed["metrics.json"]["A_ZS"]["new"] == new["A_ZS"]
    dvc(run, "plots", "diff", "state/tiny/0001", "state/tiny/0002", "--out", str(tmp_path / "plots"))
    html = (tmp_path / "plots" / "index.html").read_text()
    for title in ("accumulation and retention (%)", "each data set (%)", "training loss", "learning rate"):
        assert title in html
    for tag in ("state/tiny/0001", "state/tiny/0002"):
        assert f'"rev": "{tag}"' in html
    assert f'"score": "{new["top1"]["second"]}"' in html


def test_tables_for_plots_have_a_row_for_each_step_and_set(run: Path) -> None:
    rows = git(run, "show", "state/tiny/0002:plots/timeline.csv").splitlines()
    assert rows[0] == "step,arrival,A_KA,A_ZS,geometric_mean"
    assert [row.split(",")[:2] for row in rows[1:]] == [["0", "base"], ["1", "first"], ["2", "second"]]
    sets = git(run, "show", "state/tiny/0002:plots/datasets.csv").splitlines()
    assert [row.split(",")[0] for row in sets] == ["dataset", "first", "second", "base"]


def test_a_flow_run_has_the_summary_as_artifacts(run: Path, prefect_api: dict[str, str]) -> None:
    @flow
    def reporting() -> str:
        artifacts.publish(run, plain.cells(run, ["tiny"]))
        return str(flow_run.get_id())

    settings = {
        PREFECT_API_URL: prefect_api["PREFECT_API_URL"],
        PREFECT_API_AUTH_STRING: prefect_api["PREFECT_API_AUTH_STRING"],
        PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with temporary_settings(settings):
        mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[uuid.UUID(reporting())]))
        with get_client(sync_client=True) as client:
            found = {one.key: one for one in client.read_artifacts(artifact_filter=mine)}
    assert "# tiny" in found["summary"].data
    (row,) = json.loads(found["cells"].data)
    assert row["cell"] == "ema + ema, linear"
    assert row["step"] == 2
