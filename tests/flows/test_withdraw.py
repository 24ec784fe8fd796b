"""An arrival is taken out of a timeline that ran for real: what is deployed, what descends, and how often."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.withdraw import withdraw
from tasks.arrive import Request, arrive, rewritten
from tasks.errors import UserError
from tasks.inbox import scan
from tasks.merge import merge
from tasks.model import checkpoints, coded
from tasks.params import load
from tasks.record import plan_withdrawal
from tests import project as projects
from tests.arrive.conftest import drop
from tests.project import chronomerge, git

pytestmark = pytest.mark.slow

STREAM = [
    *projects.PARAMS["stream"],
    {"name": "third", "update": ["images:drawings/base#test", "images:drawings/first#test"]},
]
TIME = {"init": "zs", "deploy": "all", "technique": {"name": "fisher", "prior": 1e-6}}
EVALUATE = {**projects.PARAMS["evaluate"], "allow_overlap": True, "heads": [{"name": "gda", "label": "frozen"}]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, prefect_api: dict[str, str]) -> Path:
    """Three arrivals whose experts are stored coded, trained from the base and without a buffer: none descends."""
    folder = projects.make(
        tmp_path_factory.mktemp("withdraw") / "project", time=TIME, stream=STREAM, evaluate=EVALUATE,
        store={"experts": "lossless"},
        train={**projects.PARAMS["train"], "mixture": {"pretraining": 0.5, "update": 0.5, "buffer": 0.0}},
    )  # fmt: skip
    chronomerge(folder, "run", **prefect_api)
    return folder


def manifest(folder: Path, tag: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(git(folder, "show", f"state/tiny/{tag}:manifest.json"))
    return found


def test_hooks_that_nobody_trusts_are_refused_before_anything_changes(project: Path) -> None:
    before = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(f"{before}hooks: {{recorded: [touch, made]}}\n")
    try:
        done = chronomerge(project, "withdraw", "first", check=False)
        assert done.returncode == 2
        assert "--trust" in done.stderr
        assert not git(project, "tag", "--list", "state/tiny/*.2")
    finally:
        (project / "params.yaml").write_text(before)


def test_an_arrival_is_taken_out_and_what_is_deployed_has_the_bits_of_the_others_alone(
    project: Path, tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    comments = (project / "params.yaml").read_text().replace("stream:\n", "# mine\nstream:\n")
    (project / "params.yaml").write_text(comments)
    done = chronomerge(project, "withdraw", "first", **prefect_api)
    assert "first is withdrawn (state/tiny/0001 recorded it): a new line starts at state/tiny/0000.2" in done.stdout
    assert "first was withdrawn; no expert descends from it" in done.stdout
    assert {f"state/tiny/000{step}.2" for step in (0, 1, 2)} <= set(projects.tags(project))
    assert "# mine" in (project / "params.yaml").read_text()

    chronomerge(project, "restore", "2", "--to", str(tmp_path / "after"))
    for step in (2, 3):
        chronomerge(project, "restore", f"{step}.1", "--to", str(tmp_path / f"{step}"))
    step = "data/step"
    base = tmp_path / "after/data/history/weights/base.safetensors"
    experts = [tmp_path / f"{t}.safetensors" for t in (2, 3)]
    for t, expert in zip((2, 3), experts, strict=True):
        coded.as_safetensors(tmp_path / f"{t}/{step}/expert{coded.SUFFIX}", base, expert)
    merge(
        "fisher", experts, base, tmp_path / "by-hand.safetensors",
        settings={"prior": 1e-6}, threads=1,
        statistics=[tmp_path / f"{t}/{step}/statistics/expert.safetensors" for t in (2, 3)],
    )  # fmt: skip
    deployed = tmp_path / "after" / step / "deployed.safetensors"
    assert deployed.read_bytes() == (tmp_path / "by-hand.safetensors").read_bytes()
    assert (tmp_path / "after" / step / "expert.safetensors").read_bytes() == experts[1].read_bytes()
    pools = json.loads((tmp_path / "after/data/history/pools/pools.json").read_text())
    assert pools == ["pretraining", "second"]
    heads = tmp_path / "after/data/step/heads/running/state-base.safetensors"
    assert json.loads(checkpoints.metadata(heads)["state"])["spec"]["pools"] == ["pretraining", "second", "third"]
    measured = "data/step/statistics/expert.safetensors"
    assert (tmp_path / "after" / measured).read_bytes() == (tmp_path / "3" / measured).read_bytes()

    newest = manifest(project, "0002.2")
    assert newest["withdrawals"] == [{"arrival": "first", "state": "state/tiny/0001", "still_in": []}]
    assert newest["budget"]["steps"] == 0
    path = "data/step/expert.weights"
    assert newest["outputs"][path] == manifest(project, "0003")["outputs"][path]  # no expert becomes larger
    assert newest["coded"] == manifest(project, "0003")["coded"]
    assert manifest(project, "0001.2")["statistics"] == manifest(project, "0002")["statistics"]
    assert projects.made_again(project, "2")
    assert "nothing to do" in chronomerge(project, "run", **prefect_api).stdout


@pytest.mark.parametrize(
    ("arrival", "message"),
    [
        ("first", "'first' was withdrawn already (state/tiny/0000.2); there is nothing left to do"),
        ("nobody", "timeline 'tiny' has no arrival 'nobody' to withdraw; recorded are second, third"),
    ],
)
def test_what_cannot_be_withdrawn_is_one_line(
    arrival: str, message: str, project: Path, prefect_api: dict[str, str]
) -> None:
    before = (project / "params.yaml").read_text()
    done = chronomerge(project, "withdraw", arrival, check=False, **prefect_api)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert (project / "params.yaml").read_text() == before


def test_an_inbox_does_not_take_a_withdrawn_arrival_and_arrive_does(project: Path, tmp_path: Path) -> None:
    path = project / "params.yaml"
    before = path.read_text()
    drop(tmp_path / "inbox/first", {"cat": 2})
    (tmp_path / "inbox/first/READY").touch()
    (refused,) = scan(project, str(tmp_path / "inbox")).refused
    assert "'first' was withdrawn (state/tiny/0001 recorded it); `chronomerge arrive` takes it anyway" in refused.why
    assert path.read_text() == before
    verdict = arrive(project, Request("first", (str(tmp_path / "inbox/first"),)))
    assert verdict.outcome == "arrived"
    assert "'first' was withdrawn (state/tiny/0001 recorded it), and arrives again" in verdict.notes
    assert [one.name for one in load(path).stream] == ["second", "third", "first"]

    path.write_text(before)  # its files are there still, and come under another name
    (tmp_path / "inbox/first").rename(tmp_path / "inbox/renamed")
    (refused,) = scan(project, str(tmp_path / "inbox")).refused
    assert (refused.name, "'first' was withdrawn" in refused.why) == ("renamed", True)


@pytest.fixture(scope="module")
def ema(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arrivals, the second trained from the running model and with a buffer: it descends from the first."""
    return projects.copy(run, tmp_path_factory.mktemp("descends") / "project")


def test_what_descends_is_said_and_a_killed_withdrawal_goes_on(ema: Path, prefect_api: dict[str, str]) -> None:
    path, params = ema / "params.yaml", load(ema / "params.yaml")
    plan = plan_withdrawal(ema, params, "first", retrain=False)
    path.write_text(rewritten(path.read_text(), plan.stream, path))  # killed before the new line started
    refused = chronomerge(ema, "run", check=False, **prefect_api)
    assert refused.returncode == 2
    assert "differs from what step 1 was recorded with" in refused.stderr
    _, made = withdraw(ema, "first")  # killed before a step was recorded
    assert made is not None
    assert made.tag == "state/tiny/0000.2"
    again = chronomerge(ema, "withdraw", "first", check=False, **prefect_api)
    assert "`chronomerge run` records the pending steps" in " ".join(again.stderr.split())
    chronomerge(ema, "run", **prefect_api)
    kept = manifest(ema, "0001.2")
    assert kept["withdrawals"] == [{"arrival": "first", "state": "state/tiny/0001", "still_in": ["second"]}]
    assert kept["outputs"]["data/step/expert.safetensors"] == manifest(ema, "0002")["outputs"][
        "data/step/expert.safetensors"
    ]  # fmt: skip


KILLED = """
import os, signal, subprocess, sys
from pathlib import Path

left = int(sys.argv[1])

def counted(function):
    def call(*args, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return call

from flows.withdraw import withdraw

os.replace, os.rename = counted(os.replace), counted(os.rename)
subprocess.Popen.__init__ = counted(subprocess.Popen.__init__)
withdraw(Path.cwd(), "first", retrain=True)
"""
"""Takes `first` out, and kills itself before the n-th program that it would start or the n-th file that it replaces."""


@pytest.mark.long
def test_killed_at_any_moment_it_has_done_nothing_or_the_same_call_goes_on(run: Path, tmp_path: Path) -> None:
    killed = 0
    for moment in range(0, 80, 2):
        folder = projects.copy(run, tmp_path / str(moment))
        path, before, tags = folder / "params.yaml", (folder / "params.yaml").read_text(), projects.tags(folder)
        done = subprocess.run([sys.executable, "-c", KILLED, str(moment)], cwd=folder, capture_output=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
        killed += done.returncode != 0
        started = set(projects.tags(folder)) - set(tags)
        assert started <= {"state/tiny/0000.2"}
        assert not started or path.read_text() != before
        if started:
            assert "`chronomerge run` records the pending steps" in refusal(folder)
        else:
            plan, made = withdraw(folder, "first", retrain=True)
            assert (plan.retrained, made and made.tag) == (("second",), "state/tiny/0000.2")
        newest = manifest(folder, "0000.2")
        assert newest["withdrawals"] == [{"arrival": "first", "state": "state/tiny/0001"}]
        assert [one.name for one in load(path).stream] == ["second"]
        assert load(path).stream[0].from_state is None
    assert killed


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        withdraw(folder, "first", retrain=True)
    return str(error.value)


RETRAINING = """
import chronomerge as cm
start, last = cm.withdraw("first", retrain=True)
print(start.tag, last.tag, last.manifest.withdrawals[0].still_in, sep="\\n")
"""


@pytest.mark.long
def test_what_descends_can_be_trained_again_and_is_as_if_the_arrival_had_never_come(
    run: Path, tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    """From Python, by a call that was killed before its line started and came again."""
    ema = projects.copy(run, tmp_path / "project")
    path = ema / "params.yaml"
    plan = plan_withdrawal(ema, load(path), "first", retrain=True)
    assert plan.retrained == ("second",)
    path.write_text(rewritten(path.read_text(), plan.stream, path))  # killed before the new line started
    done = projects.script(ema, RETRAINING, **prefect_api)
    assert done.stdout.splitlines() == ["state/tiny/0000.2", "state/tiny/0001.2", "()"]
    newest = manifest(ema, "0001.2")
    assert newest["withdrawals"][0]["still_in"] == []
    assert newest["budget"]["steps"] > 0
    done = chronomerge(ema, "withdraw", "first", "--retrain", check=False, **prefect_api)
    assert "no expert descends from it any more" in " ".join(done.stderr.split())
    done = chronomerge(ema, "withdraw", "second", check=False, **prefect_api)
    assert "'second' is the only expert" in " ".join(done.stderr.split())
    projects.write_params(ema, timeline="fresh", stream=projects.PARAMS["stream"][1:])
    chronomerge(ema, "run", **prefect_api)
    fresh = json.loads(git(ema, "show", "state/fresh/0001:manifest.json"))
    for name in ("deployed.safetensors", "expert.safetensors", "running"):
        assert newest["outputs"][f"data/step/{name}"] == fresh["outputs"][f"data/step/{name}"]
