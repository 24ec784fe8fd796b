"""Timelines that belong to no grid, as cells: from states in real git."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.errors import UserError
from tasks.grid.cells import Cell
from tasks.record import commits, names
from tasks.report import plain, records
from tasks.storage.git import git
from tests import manifests

PARAMS: dict[str, Any] = {
    "seed": 0,
    "stream": [{"name": "food"}],
    "time": {"init": "ema", "deploy": "ema", "technique": {"name": "linear", "weight": 0.5}},
    "store": {"remote": "embedded"},
    "evaluate": {"adaptation": [{"name": "food"}], "retention": [{"name": "base"}]},
}
METRICS = {"A_KA": 1.0, "A_ZS": 2.0, "geometric_mean": 1.4, "top1": {"food": 1.0, "base": 2.0}}
ROUTING = {
    "images": {"food": {"food": 3}}, "expert": {"food": "food"}, "accuracy": {"food": 100.0}, "mean_accuracy": 100.0,
    "oracle": {"food": 1.0}, "oracle_A_KA": 1.0,
}  # fmt: skip
PIPELINE = """
stages:
  evaluate:
    cmd: python -m tasks evaluate
    outs: [a, b]
    metrics:
      - metrics.json:
          cache: false
"""


def content(**changes: Any) -> dict[str, Any]:
    """A manifest that names all that the report reads."""
    entry = {"md5": "0" * 32, "size": 1}
    inputs = dict.fromkeys(("data/raw/arrival", "data/raw/evaluation"), entry)
    return manifests.content(inputs=inputs, outputs={"a": entry, "b": entry, "metrics.json": entry}, **changes)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "code")
    return tmp_path


def state(project: Path, timeline: str, files: Mapping[str, str] = {}, **changes: Any) -> None:
    """Record step 0 of a timeline, with only the files that a report reads, some of them replaced by ``files``."""
    tree = project / f"tree-{timeline}"
    tree.mkdir()
    YAML(typ="safe").dump({**PARAMS, "timeline": timeline, **changes}, tree / "params.yaml")
    (tree / "dvc.yaml").write_text(PIPELINE)
    (tree / "manifest.json").write_text(json.dumps(content(seconds={"evaluate": 1.0})))
    (tree / "metrics.json").write_text(json.dumps(METRICS))
    for name, text in files.items():
        (tree / name).write_text(text)
    git(project, "--work-tree", str(tree), "add", "--all")
    made = git(project, "write-tree")
    git(project, "read-tree", "HEAD")
    commits.make(project, timeline, 0, 1, made, [git(project, "rev-parse", "HEAD")], "state", None, pointers=())


def test_a_cell_is_what_the_newest_states_params_say(project: Path) -> None:
    state(project, "demo", seed=4)
    assert plain.cells(project, ["demo"]) == [Cell("demo", "ema", "ema", "linear", 4)]


def test_seeds_and_protocols_of_one_experiment_are_compared(project: Path) -> None:
    state(project, "demo")
    state(project, "again", seed=1)
    state(project, "replay", time={**PARAMS["time"], "init": "ft", "deploy": "ft"})
    found = plain.cells(project, ["demo", "again", "replay"])
    assert [(cell.protocol, cell.technique, cell.seed, cell.variant) for cell in found] == [
        ("ema+ema", "linear", 0, ""), ("ema+ema", "linear", 1, ""), ("ft+ft", "", 0, "")
    ]  # fmt: skip


def test_settings_tell_techniques_of_one_name_apart(project: Path) -> None:
    state(project, "half")
    state(project, "tenth", time={**PARAMS["time"], "technique": {"name": "linear", "weight": 0.1}})
    labels = [cell.technique for cell in plain.cells(project, ["half", "tenth"])]
    assert labels == ["linear weight 0.5", "linear weight 0.1"]


def test_settings_may_be_lists(project: Path) -> None:
    state(project, "one", time={**PARAMS["time"], "technique": {"name": "mine.py:M", "weights": [0.5, 0.5]}})
    assert [cell.technique for cell in plain.cells(project, ["one"])] == ["M"]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": "x"}, {"time": {}}, {"time": {**PARAMS["time"], "init": "<script>"}},
        {"time": {**PARAMS["time"], "technique": "linear"}},
    ],
)  # fmt: skip
def test_params_that_no_cell_can_have_are_damaged(project: Path, changes: dict[str, Any]) -> None:
    state(project, "demo", **changes)
    with pytest.raises(UserError, match=r"^state/demo/0000: params\.yaml is damaged \("):
        plain.cells(project, ["demo"])


def test_a_technique_of_ones_own_is_called_by_its_class(project: Path) -> None:
    state(project, "own", time={**PARAMS["time"], "technique": {"name": "mine/fancy.py:Fancy"}})
    assert plain.cells(project, ["own"])[0].technique == "Fancy"


@pytest.mark.parametrize("change", [{"stream": [{"name": "flags"}]}, {"store": {"remote": "other"}}])
def test_what_no_cell_can_say_makes_variants(project: Path, change: dict[str, Any]) -> None:
    """Another stream; or nothing at all, so that the two would be one cell."""
    state(project, "demo")
    state(project, "other", **change)
    assert [cell.variant for cell in plain.cells(project, ["demo", "other"])] == ["demo", "other"]


def test_a_timeline_without_states_is_one_sentence(project: Path) -> None:
    state(project, "demo")
    with pytest.raises(UserError, match=r"timeline 'nix' has no states to report on \(recorded timelines: demo\)"):
        plain.cells(project, ["demo", "nix"])


def test_records_hold_every_file_and_who_wrote_what(project: Path) -> None:
    state(project, "demo")
    (cell,) = plain.cells(project, ["demo"])
    (record,) = records.read(project, [cell])[cell]
    assert record.manifest.as_dict() == content(seconds={"evaluate": 1.0})
    assert record.metrics == METRICS
    assert record.params["timeline"] == "demo"
    assert record.outputs == {"evaluate": ("a", "b", "metrics.json")}
    assert record.state.tag == names.short_tag("demo", 0)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"manifest.json": "{"}, r"manifest\.json is damaged .* `chronomerge doctor`"),
        ({"metrics.json": "[]"}, r"metrics\.json is damaged"),
        ({"metrics.json": json.dumps({**METRICS, "top1": {"other": 1.0}})}, "metrics.json names the set other"),
        ({"metrics.json": json.dumps({**METRICS, "top1": {"{0.x}": 1.0}})}, r"metrics.json names the set \{0\.x\}"),
        ({"metrics.json": json.dumps({**METRICS, "top5": {"other": 1.0}})}, "metrics.json names the set other"),
        (
            {"metrics.json": json.dumps({**METRICS, "expert": {"set": "x", "score": 1.0}})},
            "metrics.json names the set x",
        ),
        (
            {"metrics.json": json.dumps({**METRICS, "routing": {**ROUTING, "expert": {}}})},
            "metrics.json has a routing accuracy of food, and no expert of it",
        ),
        ({"dvc.yaml": "stages: []"}, r"dvc\.yaml: not the pipeline .*stages"),
        ({"dvc.yaml": "stages:\n  evaluate:\n    outs: [a]\n"}, r"dvc\.yaml: .*stages\.evaluate\.cmd"),
        ({"dvc.yaml": "stages: {other: {cmd: x}}"}, "manifest.json names the node evaluate, and dvc.yaml does not"),
        ({"dvc.yaml": "stages: {evaluate: {cmd: x, outs: [c]}}"}, "manifest.json does not name c"),
        ({"dvc.yaml": "["}, r"dvc\.yaml: not a YAML file"),
    ],
)
def test_a_damaged_record_is_named(project: Path, files: dict[str, str], message: str) -> None:
    state(project, "demo", files)
    (cell,) = plain.cells(project, ["demo"])
    with pytest.raises(UserError, match=rf"^state/demo/0000: .*{message}"):
        records.read(project, [cell])
