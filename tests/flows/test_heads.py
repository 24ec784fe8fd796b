"""Heads in a timeline, for real: recorded, verified, handed on, judged by the gate."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from flows.run import check
from tasks import layout
from tasks.errors import UserError
from tasks.evaluate import headfile
from tasks.evaluate.support import Moments
from tasks.params import load
from tasks.record import timelines
from tasks.storage import dvc_config
from tasks.storage.cache import Cache
from tasks.storage.git import show
from tests import project as projects
from tests.project import chronomerge, git

HEADS = [
    "zeroshot",
    {"name": "gda", "label": "frozen", "shots": [1, 4, "all"]},
    {"name": "gda", "features": "deployed"},
    {"name": "prototype", "features": "base+first", "label": "aper"},
]
GATE = {"require": ["head.frozen@all.A_ZS >= 0%", "head.frozen@4.second >= 0%"]}


@pytest.fixture(scope="module")
def with_heads(tmp_path_factory: pytest.TempPathFactory, prefect_api: dict[str, str]) -> Path:
    """A timeline of two steps with heads."""
    folder = projects.make(
        tmp_path_factory.mktemp("heads") / "project",
        evaluate={**projects.PARAMS["evaluate"], "heads": HEADS},
        gate=GATE,
    )
    done = chronomerge(folder, "run", **prefect_api)
    assert "recorded state/tiny/0000 to state/tiny/0002" in done.stdout
    return folder


@pytest.mark.slow
def test_every_state_has_the_scores_and_the_files_of_heads(with_heads: Path) -> None:
    cache = Cache(dvc_config.cache_dir(with_heads))
    for step in range(3):
        state = timelines.find(with_heads, "tiny", step)
        assert state.metrics["heads"] == json.loads(show(with_heads, state.commit, layout.HEADS_METRICS))
        files = cache.members(state.entries[layout.HEADS])
        assert {"gda.safetensors", "frozen.safetensors", "running/state-base.safetensors"} <= files.keys()
        assert ("aper.safetensors" in files) == (step > 0)
        note, data, _ = headfile.read(cache.path(files["frozen.safetensors"]))
        assert isinstance(data, Moments)
        assert (note.shots, int(data.counts.sum()), len(data.classes)) == ("all", 48 * (step + 1), 4 * (step + 1))
    before, after = (timelines.find(with_heads, "tiny", step).metrics["heads"]["frozen"] for step in (0, 2))
    assert "second" in before["left_out"]
    assert "left_out" not in after
    assert set(after["top1"]["all"]) == {"first", "second", "base"}


@pytest.mark.slow
def test_a_gate_judges_a_head_and_leaves_open_what_is_not_scored_yet(with_heads: Path) -> None:
    found = [timelines.find(with_heads, "tiny", step).manifest.gate for step in (0, 2)]
    assert all(one and one.promoted for one in found)
    first, last = ([condition.holds for condition in one.conditions] for one in found if one)
    assert first == [True, None]
    assert last == [True, True]


@pytest.mark.slow
def test_a_state_with_heads_is_made_again_byte_for_byte(with_heads: Path) -> None:
    assert projects.made_again(with_heads, "2")[-1] == "heads"


@pytest.mark.slow
def test_a_fetched_head_classifies_as_the_guide_says(
    with_heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines of docs/guides/heads.md, on test images; as often right as the metrics say."""
    serving = tmp_path / "serving"
    chronomerge(with_heads, "fetch", "--deployed", "--to", str(serving))
    assert {path.name for path in (serving / "heads").iterdir()} == {
        "aper.safetensors", "frozen.safetensors", "gda.safetensors"
    }  # fmt: skip
    assert "nothing to do" in chronomerge(with_heads, "fetch", "--deployed", "--to", str(serving)).stdout
    guide = (projects.ROOT / "docs/guides/heads.md").read_text()
    [block] = [text for text in re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL) if "local-dir" in text]
    assert len(block.splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    images = sorted((with_heads / "drawings/second/test").rglob("*.png"))
    right = 0
    for image in images:
        shutil.copyfile(image, tmp_path / "apple.png")
        exec(block, {})
        right += capsys.readouterr().out.strip() in known(image.parent.name)
    metrics = timelines.find(with_heads, "tiny", 2).metrics["heads"]["gda"]["top1"]["all"]
    assert (
        100 * right / len(images) <= metrics["second"]
    )  # it has all classes to choose from, the metric those of the set
    assert right > 0


def known(folder: str) -> set[str]:
    """A class as its folder is called, and as it is in a prompt."""
    return {folder, folder.replace("_", " ")}


@pytest.mark.slow
def test_a_timeline_without_heads_has_nothing_of_them(run: Path) -> None:
    state = timelines.find(run, "tiny", 2)
    assert layout.HEADS not in state.entries
    assert "heads" not in state.metrics
    assert "heads" not in show(run, state.commit, "params.yaml")
    assert "  heads:" not in show(run, state.commit, "dvc.yaml")
    assert layout.HEADS_METRICS not in git(run, "ls-tree", "--name-only", state.commit).splitlines()


@pytest.mark.parametrize(
    ("heads", "require", "says"),
    [
        (["gad"], [], "evaluate.heads: there is no 'gad'; there are gda, knn"),
        (["gda", "gda"], [], "duplicate head 'gda' in evaluate.heads"),
        (
            ["gda"],
            ["head.tip@4.first >= 1%"],
            "gate.require: head.tip@4.first >= 1%: no head is called tip; there are gda",
        ),
        (["gda"], ["head.gda@4.first >= 1%"], "gda is not scored at 4 shots, but at all"),
        (["gda"], ["head.gda@all.fist >= 1%"], "no evaluation set is called fist"),
        (
            [{"name": "gda", "features": "aligned"}],
            [],
            "gda: features: aligned needs deployed models that share a space",
        ),
        (
            [{"name": "gda", "features": "aligned", "without": ["red"]}],
            [],
            "without takes samples out of sums by encoding them again",
        ),
        (["gda"], ["head.gda.first >= 1%"], "the score of a head is head.NAME@SHOTS.SET"),
    ],
)
def test_wrong_heads_are_refused_before_any_work(
    heads: list[str], require: list[str], says: str, tmp_path: Path
) -> None:
    evaluate = {**projects.PARAMS["evaluate"], "heads": heads}
    projects.write_params(tmp_path, evaluate=evaluate, gate={"require": require})
    projects.draw(tmp_path / "drawings")
    with pytest.raises(UserError) as refused:
        check(load(tmp_path / "params.yaml"), tmp_path, base=False)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
