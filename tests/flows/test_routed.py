"""A routed deployment for real: recorded, killed, verified, restored, delivered, served, reported."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tasks import layout
from tasks.errors import UserError
from tasks.model import origins
from tasks.record import delivery, timelines
from tasks.storage import dvc_config
from tasks.storage.cache import Cache
from tests import project as projects
from tests.project import chronomerge

TIME = {"init": "zs", "deploy": "routed"}


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory, prefect_api: dict[str, str]) -> Path:
    """A timeline of two steps."""
    folder = projects.make(
        tmp_path_factory.mktemp("routed") / "project", time=TIME, deploy={"deltas": "lossless"}
    )  # fmt: skip
    done = chronomerge(folder, "run", **prefect_api)
    assert "recorded state/tiny/0000 to state/tiny/0002" in done.stdout
    return folder


@pytest.mark.slow
def test_a_state_holds_deltas_and_router_in_place_of_a_model(routed: Path) -> None:
    base, _, newest = timelines.lineage(routed, "tiny")
    assert layout.DEPLOYED in base.entries
    assert not base.routed
    assert newest.routed
    assert layout.DEPLOYED not in newest.entries
    assert newest.manifest.routed
    assert list(newest.manifest.routed.routes) == ["base", "first", "second"]
    assert newest.manifest.protocol.deploy == "routed"


@pytest.mark.slow
def test_metrics_say_where_images_went_and_what_the_oracle_scores(routed: Path) -> None:
    for step, known in ((1, {"first"}), (2, {"first", "second"})):
        found = timelines.find(routed, "tiny", step).metrics
        routing = found["routing"]
        assert {name: sum(went.values()) for name, went in routing["images"].items()} == found["size"]
        assert set(routing["oracle"]) == set(routing["accuracy"]) == known
        for name in known:
            went = routing["images"][name].get(name, 0)
            assert routing["accuracy"][name] == pytest.approx(100 * went / found["size"][name])
    own = found["expert"]
    assert own == {"set": "second", "score": routing["oracle"]["second"]}
    assert routing["oracle_A_KA"] == pytest.approx(sum(routing["oracle"].values()) / 2)


@pytest.mark.slow
def test_a_routed_state_is_made_again_byte_for_byte(routed: Path) -> None:
    assert projects.made_again(routed, "2")[-1] == "evaluate"


@pytest.mark.slow
def test_a_routed_state_is_not_published_as_one_model(routed: Path, tmp_path: Path) -> None:
    done = chronomerge(routed, "publish", "2", "--to", str(tmp_path / "model"), check=False)
    assert done.returncode == 2
    assert "state/tiny/0002 is a routed deployment" in done.stderr
    done = chronomerge(
        routed, "fetch", "--deployed", "--to", str(tmp_path / "model"), "--dtype", "bfloat16", check=False
    )
    assert done.returncode == 2
    assert "leave --format and --dtype out" in done.stderr
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_server_gets_base_deltas_and_router_and_the_guides_lines_serve_them(
    routed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And they find what the evaluation of the state found."""
    said = chronomerge(routed, "fetch", "--deployed", "--to", str(tmp_path / "serving")).stdout
    assert "state/tiny/0002 is in" in said
    files = {path.relative_to(tmp_path / "serving").as_posix() for path in (tmp_path / "serving").rglob("*.*")}
    deltas = {"routed/router.safetensors", "routed/first.weights", "routed/second.weights"}
    assert files >= {"open_clip_model.safetensors", "open_clip_config.json", "state.json", *deltas}
    assert "nothing to do" in chronomerge(routed, "fetch", "--deployed", "--to", str(tmp_path / "serving")).stdout
    guide = (projects.ROOT / "docs/guides/routing.md").read_text()
    [block] = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block, names)
    state = timelines.find(routed, "tiny", 2)
    for name in ("first", "base"):
        photos = sorted((routed / f"drawings/{name}/test").rglob("*.png"))
        classes = sorted({path.parent.name for path in photos})
        found = names["classify"](photos, [f"a photo of a {one}." for one in classes])
        right = [text == f"a photo of a {path.parent.name}." for text, path in zip(found, photos, strict=True)]
        assert 100 * sum(right) / len(right) == pytest.approx(state.metrics["top1"][name], abs=0.01)


@pytest.mark.slow
def test_what_another_state_delivered_goes(routed: Path, tmp_path: Path) -> None:
    """A server that followed a step with a delta more, and one with a model alone."""
    folder = tmp_path / "serving"
    for step, kept in ((2, {"first.weights", "second.weights"}), (1, {"first.weights"}), (0, set[str]())):
        delivery.deliver(timelines.find(routed, "tiny", step), folder)
        there = {path.name for path in folder.glob("routed/*")}
        assert there == (kept | {"router.safetensors"} if kept else set())
        assert delivery.is_there(timelines.find(routed, "tiny", step), folder)
    assert not delivery.is_there(timelines.find(routed, "tiny", 2), folder)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_children")
def test_git_and_dvc_alone_bring_the_state_and_repro_does_nothing(routed: Path, tmp_path: Path) -> None:
    state = timelines.find(routed, "tiny", 2)
    restored = state.restore(tmp_path / "restored").folder
    assert {path.name for path in (restored / layout.ROUTED).iterdir()} == {
        "router.safetensors", "first.weights", "second.weights"
    }  # fmt: skip
    environment = {
        "DVC_NO_ANALYTICS": "1", "PATH": f"{Path(projects.program('python')).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(
        [projects.program("dvc"), "repro"], cwd=restored, env=environment, capture_output=True, text=True, check=True
    )
    assert "Data and pipelines are up to date." in done.stdout
    with pytest.raises(UserError, match="a restored state, not a model, and its deployment is routed"):
        origins.require_no_state(restored)
    projects.git(routed, "worktree", "remove", "--force", str(restored))


@pytest.mark.long
def test_the_report_draws_routes_and_oracle(routed: Path, tmp_path: Path) -> None:
    assert "Routes" in projects.report_page(routed, tmp_path / "report")


def with_a_third(routed: Path, folder: Path, **changes: Any) -> Path:
    """A copy in which a third arrival, with images of the first's test set, is pending."""
    projects.copy(routed, folder)
    third = {"name": "third", "update": ["images:drawings/first#test"]}
    evaluate = {**projects.PARAMS["evaluate"], "allow_overlap": True}
    projects.write_params(folder, time=TIME, stream=[*projects.PARAMS["stream"], third], evaluate=evaluate, **changes)
    return folder


@pytest.mark.long
def test_a_killed_step_ends_with_the_same_bytes_and_an_expert_more_is_folded(
    routed: Path, tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    folder = with_a_third(routed, tmp_path / "copy", deploy={"deltas": "lossless", "max_deltas": 2})
    other = projects.copy(folder, tmp_path / "other")
    (folder / "tasks/model/router.py").open("a").write(KILLED)
    process = projects.start(folder, "run", **prefect_api)
    assert process.wait(120) != 0
    assert len(projects.tags(folder)) == 3
    projects.git(folder, "checkout", "--quiet", "tasks/model/router.py")
    made = []
    for each in (folder, other):
        chronomerge(each, "run", **prefect_api)
        state = timelines.find(each, "tiny", 3)
        assert state.manifest.routed
        made.append((state.entries[layout.ROUTED], state.metrics))
        assert len([one for one in state.manifest.routed.routes if one != "base"]) == 2
        assert {*state.metrics["routing"]["expert"]} == {"first", "second"}
    assert made[0] == made[1]


KILLED = """

def save(path: Path, router: Router) -> None:
    import os
    import signal

    path.write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.long
def test_withdrawal_rollback_and_gc_know_routes_and_coded_experts(
    routed: Path, tmp_path: Path, prefect_api: dict[str, str]
) -> None:
    folder = with_a_third(routed, tmp_path / "copy", store={"experts": "ternary"})
    chronomerge(folder, "run", **prefect_api)
    three = timelines.find(folder, "tiny", 3)
    assert three.manifest.routed
    files = Cache(dvc_config.cache_dir(folder)).members(three.entries[layout.ROUTED])
    assert files["third.weights"] == three.entries[layout.CODED_EXPERT].md5  # the delta takes no byte more
    chronomerge(folder, "withdraw", "first", **prefect_api)
    newest = timelines.lineage(folder, "tiny")[-1]
    assert newest.manifest.routed
    assert list(newest.manifest.routed.routes) == ["base", "second", "third"]
    kept = Cache(dvc_config.cache_dir(folder)).members(newest.entries[layout.ROUTED])
    assert kept["third.weights"] == files["third.weights"]
    assert newest.entries[layout.CODED_EXPERT] == three.entries[layout.CODED_EXPERT]
    chronomerge(folder, "gc", "--keep-last", "1", "--delete")
    assert "healthy" in chronomerge(folder, "doctor").stdout
    assert projects.made_again(folder, "2")[-1] == "evaluate"
    chronomerge(folder, "fetch", "--deployed", "--to", str(tmp_path / "serving"))
    there = {path.name for path in (tmp_path / "serving/routed").iterdir()}
    assert there == {"router.safetensors", "second.weights", "third.weights"}
    chronomerge(folder, "rollback", "1", **prefect_api)
    chronomerge(folder, "run", **prefect_api)
    assert timelines.lineage(folder, "tiny")[-1].entries == newest.entries
