"""A timeline whose coefficient is chosen on held-out samples, run for real: fitted, recorded, made again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks import layout
from tests import project as projects
from tests.project import ROOT, chronomerge, git
from tests.waiting import until

pytestmark = pytest.mark.slow

GUIDE = ROOT / "docs/guides/fitting.md"


def example(number: int) -> dict[str, Any]:
    """A snippet of params.yaml in the guide, as it stands there."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", GUIDE.read_text(), flags=re.DOTALL | re.MULTILINE)
    snippet: dict[str, Any] = YAML(typ="safe").load(blocks[number])
    return snippet


def run(folder: Path, given: dict[str, Any], prefect_api: dict[str, str]) -> dict[str, Any]:
    """A recorded timeline of one arrival with what a snippet says; the manifest of its last state."""
    train = {**projects.PARAMS["train"], "holdout": given["train"]["holdout"]}
    projects.make(folder, **{**given, "train": train, "stream": projects.PARAMS["stream"][:1]})
    chronomerge(folder, "run", **prefect_api)
    manifest: dict[str, Any] = json.loads(git(folder, "show", "state/tiny/0001:manifest.json"))
    return manifest


def test_the_guides_example_chooses_a_weight_and_every_byte_is_made_again(
    tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    folder = tmp_path / "project"
    fitted = run(folder, example(0), prefect_api)["fit"]
    assert fitted["method"] == "paint"
    assert len(fitted["curve"]) == 11
    assert fitted["samples"].keys() == {"first", "pretraining"}
    assert fitted["value"] in [point["value"] for point in fitted["curve"]]
    base = json.loads(git(folder, "show", "state/tiny/0000:manifest.json"))
    assert "fit" not in base
    assert layout.FIT in base["outputs"]
    nodes = projects.made_again(folder, "1")
    assert nodes.index("measure") < nodes.index("fit") < nodes.index("deploy")
    written = chronomerge(folder, "report", "--to", str(tmp_path / "report")).stdout
    assert written
    assert "How weight was chosen" in next((tmp_path / "report").rglob("*.html")).read_text()


LEARNED: dict[str, Any] = {
    "time": {"init": "zs", "deploy": "all", "technique": {"name": "task_arithmetic", "scale": 0.3}},
    "train": {**projects.PARAMS["train"], "holdout": 0.4},
    "stream": projects.PARAMS["stream"][:1],
}


@pytest.mark.long
@pytest.mark.parametrize(
    "method",
    [
        {"name": "adamerging", "iterations": 30, "every": 10, "lr": 0.05},
        {"name": "concrete", "iterations": 30, "every": 10, "lr": 0.2},
        {"name": "frank_wolfe", "iterations": 3},
    ],
    ids=["adamerging", "concrete", "frank_wolfe"],
)
def test_what_is_learned_is_recorded_after_a_kill_and_every_byte_is_made_again(
    method: dict[str, Any], tmp_path: Path
) -> None:
    folder = projects.make(tmp_path / "project", **LEARNED, fit=method)
    process = projects.start(folder, "run")
    until(lambda: [*folder.glob(".chronomerge/work/tiny/*/data/step/fit")] or process.poll() is not None)
    projects.kill(process)
    chronomerge(folder, "run")
    recorded = json.loads(git(folder, "show", "state/tiny/0001:manifest.json"))["fit"]
    assert recorded["method"] == method["name"]
    assert recorded["weights"]
    (found,) = json.loads(chronomerge(folder, "verify", "1", "--json").stdout)
    assert found["same"]
