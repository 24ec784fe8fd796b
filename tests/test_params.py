"""Params are validated as a whole, and every refusal names key, value and what is accepted."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.errors import UserError
from tasks.params import Params, load
from tests.project import PARAMS, ROOT


def loaded(folder: Path, **changes: Any) -> Params:
    YAML(typ="safe").dump({**PARAMS, **changes}, folder / "params.yaml")
    return load(folder / "params.yaml")


def test_the_shipped_params_are_valid() -> None:
    params = load(ROOT / "params.yaml")
    assert params.timeline == "demo"
    assert 6 <= len(params.stream) <= 8
    assert len(params.evaluate.adaptation) == len(params.stream)


def test_defaults_are_those_of_the_method(tmp_path: Path) -> None:
    params = loaded(tmp_path)
    assert (params.time.init, params.time.deploy, params.time.technique.name) == ("ema", "ema", "linear")
    assert params.time.ema_start == "base"
    mixture = params.train.mixture
    assert (mixture.pretraining, mixture.update, mixture.buffer) == (0.33, 0.34, 0.33)
    train = params.train
    assert (train.weight_decay, train.warmup, train.clip, train.meta_schedule) == (0.2, 0.1, 1.0, "constant")


def test_a_technique_keeps_its_own_settings(tmp_path: Path) -> None:
    params = loaded(tmp_path, time={"technique": {"name": "ties", "density": 0.2}})
    assert params.time.technique.settings == {"density": 0.2}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"tiem": {}}, ["unknown key tiem", "accepted here: timeline, seed"]),
        ({"time": {"innit": "zs"}}, ["unknown key time.innit", "init, deploy, technique"]),
        ({"train": {"steps": 0}}, ["train.steps", "greater than 0", "got 0"]),
        ({"train": {"steps": 3, "mixture": {"update": 0.5}}}, ["train.mixture", "sum to 1.16"]),
        ({"train": {"steps": 3, "batch_size": 10, "processes": 4}}, ["10 samples do not divide evenly among 4 proc"]),
        ({"train": {"steps": 3, "batch_size": 8, "accumulate": 9}}, ["8 samples a process make no 9 parts"]),
        ({"train": {"steps": 3, "processes": 3}}, ["128 samples do not divide"]),
        ({"train": {"steps": 3, "betas": [0.9, 1]}}, ["train.betas.1", "less than 1"]),
        ({"train": {"steps": 3, "buffer": {"uniform_by": "label"}}}, ["'sample', 'class' or 'arrival'"]),
        ({"time": {"init": "zs", "deploy": "ft"}}, ["keeps no history"]),
        ({"timeline": "a/b"}, ["timeline", "got 'a/b'"]),
        ({"stream": [{"name": "base", "expert": "x"}]}, ["'base' is taken"]),
        ({"stream": [{"name": "pretraining", "expert": "x"}]}, ["'pretraining' is taken"]),
        (
            {"stream": [{"name": "a", "expert": "x"}, {"name": "a", "expert": "y"}]},
            ["duplicate arrival name 'a' in stream[1]; rename one"],
        ),
        ({"stream": [{"name": "a"}]}, ["exactly one of update (data) or expert"]),
        ({"stream": [{"name": "a", "expert": "x", "updates": []}]}, ["unknown key stream.0.updates"]),
        ({"base": {"model": "x", "pretrained": "train"}}, ["needs both base.train and base.pretraining"]),
        ({"evaluate": {"adaptation": [], "retention": []}}, ["evaluate.adaptation", "at least 1 item"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        loaded(tmp_path, **changes)
    assert "params.yaml" in str(error.value)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "a: 2001-99-99",
        "a: !!int x",
        "[" * 5000,
        "- just\n- a list\n",
        "",
        "\udcff".encode("utf-8", "surrogateescape"),
    ],
)
def test_what_is_no_params_file(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "params.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"params\.yaml: "):
        load(tmp_path / "params.yaml")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "params.yaml")
