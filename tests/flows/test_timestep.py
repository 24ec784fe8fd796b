"""The graph of a time step, as Prefect's server has it."""

import time
from datetime import datetime
from typing import Any

import pytest

from flows.prefect.api import Api
from tasks import nodes
from tests.flows.conftest import Recorded
from tests.project import ROOT

pytestmark = pytest.mark.slow

PLACED = {
    "fetch-history": "data/history",
    "fetch-arrival": "data/raw/arrival",
    "fetch-evaluation": "data/raw/evaluation",
}
"""The task that places each input of the step."""


@pytest.fixture
def graph(recorded_run: Recorded, prefect_api: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The task runs of step 1 of the session's timeline, by name; ``inputs`` are the names of those before it."""
    api = Api(prefect_api["PREFECT_API_URL"], sign_in=prefect_api["PREFECT_API_AUTH_STRING"])
    flow_runs = api.post(
        "flow_runs/filter", {"flow_runs": {"name": {"any_": ["step 1"]}}, "flows": {"name": {"any_": ["timestep"]}}}
    )
    [flow_run] = [row["id"] for row in flow_runs if row["parameters"]["project"] == str(recorded_run.project)]
    deadline = time.monotonic() + 60  # the server writes down task runs from events, some time after they ended
    while True:
        rows = api.post("task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
        if any(row["name"] == "record-1" for row in rows) and all(row["end_time"] for row in rows):
            break
        assert time.monotonic() < deadline, sorted((row["name"], row["state_type"]) for row in rows)
        time.sleep(0.2)
    name_of = {row["id"]: row["name"].removesuffix("-1") for row in rows}
    for row in rows:
        row["inputs"] = {name_of[one["id"]] for given in row["task_inputs"].values() for one in given if "id" in one}
    return {name_of[row["id"]]: row for row in rows}


def test_the_graph_on_prefects_page_is_the_one_that_dvc_yaml_declares(graph: dict[str, dict[str, Any]]) -> None:
    declared = {name: node for name, node in nodes.declared(ROOT).items() if not nodes.NODES[name].only_with}
    made = {path: name for name, node in declared.items() for path in node.outs}
    made |= {path: name for name, path in PLACED.items()}
    assert set(graph) == {*declared, *PLACED, "check-overlap", "record"}
    assert graph["check-overlap"]["inputs"] == {"prepare", "prepare-evaluation"}
    for name, node in declared.items():
        read = {task for path in node.data for parent, task in made.items() if f"{path}/".startswith(f"{parent}/")}
        assert graph[name]["inputs"] == read
    assert graph["record"]["inputs"] - {"check-overlap"} == {*declared, *PLACED}


def test_prepare_and_prepare_evaluation_run_side_by_side(graph: dict[str, dict[str, Any]]) -> None:
    start, end = (
        {name: datetime.fromisoformat(graph[name][f"{moment}_time"]) for name in graph} for moment in ("start", "end")
    )
    assert start["prepare-evaluation"] < end["prepare"]
    assert start["initialize"] < max(end["prepare"], end["prepare-evaluation"])
