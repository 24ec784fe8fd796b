"""A run that evaluates on a share of the test samples: what its states say of it, and that they can be verified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import project as projects
from tests.project import PARAMS, chronomerge, git

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_a_run_on_a_share_says_which_states_were_evaluated_so(tmp_path: Path, prefect_api: dict[str, str]) -> None:
    project = projects.make(tmp_path / "project", evaluate={**PARAMS["evaluate"], "share": 0.5})
    chronomerge(project, "run", **prefect_api)
    found = [json.loads(git(project, "show", f"state/tiny/000{step}:metrics.json")) for step in range(3)]
    assert [sorted(one.get("share", {})) for one in found] == [[], ["base", "first", "second"], []]
    assert [one["size"]["first"] for one in found] == [16, 8, 16]
    assert [one.get("expert", {}).get("set") for one in found] == [None, "first", "second"]
    assert "score_of_share" in found[1]["expert"]
    assert "score_of_share" not in found[2]["expert"]
    table = chronomerge(project, "states").stdout
    assert "~ 1: evaluated on 50 % of each class of base, first, second; all other scores" in " ".join(table.split())
    of_step = {name: next(line for line in table.splitlines() if name in line) for name in ("first", "second")}
    assert [of_step[name].count("~") for name in ("first", "second")] == [3, 0]
    assert "state/tiny/0001" in chronomerge(project, "verify", "1", **prefect_api).stdout
