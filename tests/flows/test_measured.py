"""A timeline whose technique looks at the experts' data, run for real: measured, recorded, made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from tasks import layout
from tests import project as projects
from tests.project import chronomerge, git

pytestmark = pytest.mark.long


def test_a_timeline_measures_its_experts_and_every_byte_is_made_again(
    tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    technique = {"name": "fisher", "prior": 1e-6}
    folder = projects.make(
        tmp_path / "project", time={"init": "zs", "deploy": "all", "technique": technique},
        stream=projects.PARAMS["stream"][:1],
    )  # fmt: skip
    chronomerge(folder, "run", **prefect_api)
    manifest = json.loads(git(folder, "show", "state/tiny/0001:manifest.json"))
    assert manifest["statistics"]["estimator"] == "expected"
    assert manifest["statistics"]["pool"] == "first"
    assert manifest["statistics"]["samples"] > 0
    assert layout.STATISTICS in manifest["outputs"]
    assert "statistics" not in json.loads(git(folder, "show", "state/tiny/0000:manifest.json"))
    assert "measure" in projects.made_again(folder, "1")
    chronomerge(folder, "restore", "1", "--to", str(tmp_path / "restored"))
    with safe_open(tmp_path / "restored" / layout.STATISTICS / "expert.safetensors", framework="np") as file:
        assert any(name.startswith("fisher/") for name in file.keys())  # noqa: SIM118
