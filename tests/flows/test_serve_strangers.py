"""A project that is served with a Prefect server of ours: what strangers, web pages and other clients of it can do."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flows.prefect import schedules
from flows.prefect import server as prefect_server
from flows.prefect.api import Api
from tests import project as projects
from tests.flows.serving import FAR_AWAY, Serve, served
from tests.waiting import until

pytestmark = pytest.mark.long


class Live(NamedTuple):
    folder: Path
    serve: Serve
    api: Api
    """Signed in."""
    deployment: str
    marker: Path
    """What commands of an attacker make."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A timeline that is recorded up to its base: a run of it has nothing to do."""
    folder = projects.make(tmp_path_factory.mktemp("live") / "project", timeline="watched", stream=[])
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("PREFECT_API_URL", raising=False)
        with served(folder, *FAR_AWAY) as serve:
            said = serve.says("sign in to the pages with the content of")
            url = re.search(r"http://127\.0\.0\.1:\d+", said)
            assert url
            api = Api(f"{url[0]}/api", sign_in=prefect_server.sign_in(folder))
            deployment = schedules.deployment(api, "watched")
            assert deployment
            yield Live(folder, serve, api, deployment["id"], folder.parent / "marker")
            serve.end()


def change(live: Live, **values: Any) -> None:
    """Change the deployment, as a client with the sign-in."""
    live.api._ask("PATCH", f"deployments/{live.deployment}", values)


def outcome(live: Live, parameters: dict[str, Any]) -> tuple[str, str]:
    """Start a run, as a client with the sign-in; returns the type and the message of the state that it ends in."""
    run = live.api.post(f"deployments/{live.deployment}/create_flow_run", {"parameters": parameters})["id"]

    def ended() -> tuple[str, str] | None:
        state = live.api.get(f"flow_runs/{run}")["state"]
        return (state["type"], state["message"]) if state["type"] in ("FAILED", "COMPLETED", "CRASHED") else None

    ends: tuple[str, str] = until(ended, live.serve.told)
    return ends


def attackers_code(live: Live) -> Path:
    """A folder that looks like a project, whose code makes the marker."""
    folder = live.folder.parent / "attacker"
    (folder / "flows").mkdir(parents=True, exist_ok=True)
    code = f"open({str(live.marker)!r}, 'w')\n"
    for name in ("flows/__init__.py", "flows/__main__.py", "flows/schedule.py", "sitecustomize.py", "flow.py"):
        (folder / name).write_text(code)
    (folder / "params.yaml").write_text("timeline: watched\n")
    return folder


def test_the_runner_keeps_its_files_in_the_project(live: Live) -> None:
    """A folder of a known name in the shared temporary folder could be another user's."""
    until((live.folder / ".chronomerge/runner/runner_storage").is_dir, live.serve.told)
    assert (live.folder / ".chronomerge").stat().st_mode & 0o077 == 0


def test_a_run_of_another_folder_is_refused(live: Live) -> None:
    folder = attackers_code(live)
    kind, message = outcome(live, {"project": f"{live.folder}/../{folder.name}"})
    assert kind == "FAILED"
    assert message == f"the parameter project is {folder}; this deployment runs only {live.folder}"
    assert not live.marker.exists()
    assert projects.tags(live.folder) == []


def test_a_deployment_with_pull_steps_or_other_code_runs_nothing(live: Live) -> None:
    """Even where the one who changes it has the sign-in."""
    folder = attackers_code(live)
    shell = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {live.marker}"}}
    change(live, pull_steps=[shell], path=str(folder), entrypoint="flow.py:flow")
    kind, message = outcome(live, {"project": str(live.folder)})
    assert (kind, "pull steps" in message) == ("FAILED", True)
    variables = {"env": {"PYTHONPATH": str(folder)}, "command": f"touch {live.marker}"}
    change(live, pull_steps=[], path=str(folder), entrypoint="flow.py:flow", job_variables=variables)
    kind, message = outcome(live, {"project": str(folder)})
    assert (kind, "this deployment runs only" in message) == ("FAILED", True)
    assert not live.marker.exists()
    assert projects.tags(live.folder) == []


def answer(live: Live, method: str, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str]]:
    """Status and headers, as somebody without the sign-in gets them."""
    data = None if body is None else json.dumps(body).encode()
    named = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request(f"{live.api.url}/{path}", data, named, method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as got:
            return got.status, {name.lower(): value for name, value in got.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}


def test_requests_without_the_sign_in_change_and_show_nothing(live: Live) -> None:
    before = live.api.get(f"deployments/{live.deployment}")
    shell = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {live.marker}"}}
    attempts: list[tuple[str, str, Any]] = [
        ("GET", f"deployments/{live.deployment}", None),
        ("PATCH", f"deployments/{live.deployment}", {"pull_steps": [shell]}),
        ("POST", f"deployments/{live.deployment}/create_flow_run", {"parameters": {"project": "/tmp"}}),
        ("POST", "flow_runs/filter", {}),
        ("POST", "logs/filter", {}),
        ("DELETE", f"deployments/{live.deployment}", None),
    ]
    for method, path, body in attempts:
        assert answer(live, method, path, body)[0] in (401, 403), (method, path)
    assert live.api.get(f"deployments/{live.deployment}") == before
    assert not live.marker.exists()


def test_a_web_page_of_another_origin_or_host_gets_no_answer(live: Live) -> None:
    path, ask = f"deployments/{live.deployment}", "Access_Control_Request_Method"
    _, headers = answer(live, "OPTIONS", path, None, Origin="https://evil.example", **{ask: "PATCH"})
    assert "access-control-allow-origin" not in headers
    _, headers = answer(live, "GET", "health", None, Origin="https://evil.example")
    assert "access-control-allow-origin" not in headers
    assert answer(live, "GET", "health", None, Host="evil.example")[0] == 400
