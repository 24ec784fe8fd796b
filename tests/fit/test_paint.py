"""A coefficient chosen on held-out samples: which samples, which value, and what is deployed with it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tasks import fit as fitting
from tasks.errors import UserError
from tasks.fit.methods.paint import Point, golden, grid, rank
from tasks.merge import merge
from tasks.model.datasets import Dataset
from tasks.model.holdout import held_out
from tasks.train.node import _pools
from tests.fit import steps

PAINT = {"name": "paint", "values": 5}
EMA = {"init": "zs", "deploy": "ema", "technique": {"name": "linear", "weight": 0.5}}
ALL = {"init": "zs", "deploy": "all", "technique": {"name": "task_arithmetic", "scale": 0.3}}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return steps.project(tmp_path)


def curve(value: float, peak: float) -> Point:
    return {"value": value, "geometric_mean": -abs(value - peak), "holds": True, "short": 0.0}


@pytest.mark.parametrize("peak", [0.0, 0.21, 0.5, 0.937, 1.0])
def test_golden_section_narrows_down_to_the_only_peak(peak: float) -> None:
    tried: list[float] = []

    def point(value: float) -> Point:
        tried.append(value)
        return curve(value, peak)

    best = golden(point, rank, 0.0, 1.0, 14)
    assert len(tried) == 14
    assert abs(best["value"] - peak) <= ((math.sqrt(5) - 1) / 2) ** 11


def test_a_grid_takes_the_least_of_equally_good_values() -> None:
    best = grid(lambda value: curve(value, 0.5), rank, 0.25, 0.75, 2)
    assert best["value"] == 0.25
    assert grid(lambda value: curve(value, 0.5), rank, 0.0, 1.0, 5)["value"] == 0.5


def test_a_value_that_holds_comes_before_a_better_one_that_does_not() -> None:
    holds = {"value": 0.1, "geometric_mean": 20.0, "holds": True, "short": 0.0}
    near = {"value": 0.2, "geometric_mean": 21.0, "holds": False, "short": 0.01}
    far = {"value": 0.3, "geometric_mean": 60.0, "holds": False, "short": 0.2}
    assert sorted([far, near, holds], key=rank) == [holds, near, far]


def test_what_is_held_out_depends_on_seed_and_pixels_alone() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2000, 4, 4, 3)).astype(np.uint8)
    first = held_out(images, 0.25, 3)
    assert abs(first.mean() - 0.25) < 0.03
    assert (held_out(images[::-1], 0.25, 3) == first[::-1]).all()
    assert (held_out(images, 0.5, 3) >= first).all()
    assert not held_out(images, 0.0, 3).any()
    assert (held_out(images, 0.25, 4) != first).any()


def test_nothing_is_trained_on_what_is_held_out(project: Path) -> None:
    steps.run(project, 2, PAINT, time=EMA)
    pools, _ = _pools(project, steps.params(2, method=PAINT, time=EMA))
    past = "data/history/pools"
    folders = {"update": "data/step/arrival", "pretraining": f"{past}/pretraining", "buffer": f"{past}/a1"}
    for pool in pools:
        data = Dataset(project / folders[pool.name])
        held = held_out(data.images, 0.4, 0)
        assert 0 < held.sum() < len(data)
        assert len(pool) == (~held).sum()
        rows = np.arange(len(pool))
        assert (pool.images(rows) == data.images[~held]).all()


def test_the_running_model_is_merged_with_the_value_that_scored_best(project: Path) -> None:
    found = steps.run(project, 2, PAINT, time=EMA)
    report = found["report"]
    assert [point["value"] for point in report["curve"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    best = max(report["curve"], key=lambda point: point["geometric_mean"])
    assert report["value"] == best["value"]
    assert found["fitted"]["settings"] == {"weight": best["value"]}
    assert report["samples"].keys() == {"a1", "a2", "pretraining"}
    history = project / "data/history/weights"
    merge(
        "linear", [project / "data/step/expert.safetensors", history / "running/ema.safetensors"],
        history / "base.safetensors", project / "by-hand.safetensors", settings={"weight": best["value"]},
    )  # fmt: skip
    assert (project / "by-hand.safetensors").read_bytes() == (project / "data/step/deployed.safetensors").read_bytes()


def test_the_curve_scores_the_models_that_would_be_deployed(project: Path) -> None:
    """At 0 the running model is left as it is, at 1 the expert is deployed: both scored here by hand."""
    from tasks.fit.samples import of_step
    from tasks.fit.scores import Scorer
    from tasks.model import models

    found = steps.run(project, 2, PAINT, time=EMA)
    model = models.build(project / "data/history/model")
    samples = of_step(project, steps.params(2, method=PAINT, time=EMA))
    folder = project / "data/history/model"
    scorer = Scorer(model, samples, models.preprocess(folder), models.tokenizer(folder), 64, 256, 0)
    for value, file in ((0, "data/history/weights/running/ema.safetensors"), (-1, "data/step/expert.safetensors")):
        expected = scorer.score(project / file)
        assert {name: found["report"]["curve"][value][name] for name in ("A_KA", "A_ZS")} == {
            name: expected[name] for name in ("A_KA", "A_ZS")
        }  # fmt: skip


def test_the_scale_of_all_experts_changes_from_step_to_step_and_the_state_goes_on(project: Path) -> None:
    method = {**PAINT, "setting": "scale", "high": 0.8, "search": "golden", "values": 6}
    found = steps.run(project, 3, method, time=ALL)
    scale = found["fitted"]["settings"]["scale"]
    base = project / "data/history/weights/base.safetensors"
    experts = [project / f"data/history/weights/experts/{t:04}.safetensors" for t in (1, 2)]
    merge(
        "task_arithmetic", [*experts, project / "data/step/expert.safetensors"], base, project / "by-hand.safetensors",
        settings={"scale": scale},
    )  # fmt: skip
    assert (project / "by-hand.safetensors").read_bytes() == (project / "data/step/deployed.safetensors").read_bytes()


def test_gates_conditions_decide_among_values(project: Path) -> None:
    """Nothing may be forgotten, so that only values that keep the pretraining pool's score are taken."""
    gate = {"require": ["retention_drop <= 0%", "score.a1 >= 0%", "score.elsewhere >= 99%"]}
    changes: dict[str, Any] = {
        "time": EMA, "gate": gate,
        "evaluate": {"adaptation": [{"name": "a1", "test": ["x"]}, {"name": "elsewhere", "test": ["x"]}],
                     "retention": [{"name": "r", "test": ["x"]}]},
    }  # fmt: skip
    report = steps.run(project, 2, PAINT, **changes)["report"]
    kept = report["reference"]["A_ZS"]
    for point in report["curve"]:
        assert point["holds"] == (point["A_ZS"] >= kept)
        assert point["short"] == pytest.approx(max(0, kept - point["A_ZS"]) / 100, abs=1e-6)
    assert report["holds"]  # weight 0 leaves the model before as it is
    assert report["conditions"] == ["retention_drop <= 0%", "score.a1 >= 0%"]
    assert report["left_open"] == ["score.elsewhere >= 99%"]


def test_where_no_value_holds_the_nearest_one_is_taken_and_said(project: Path) -> None:
    gate = {"require": ["A_ZS >= 100%"]}
    steps.prepare(project, 1)
    said: list[str] = []
    from tasks.fit.node import fit

    fit(
        project, steps.params(1, method=PAINT, time=EMA, gate=gate), lambda *told: said.append(" ".join(map(str, told)))
    )
    report = json.loads((project / "data/step/fit/fit.json").read_text())["report"]
    assert not report["holds"]
    assert report["value"] == min(report["curve"], key=rank)["value"]
    assert any("no weight holds the gate's conditions" in line for line in said)


def test_captions_alone_are_scored_by_recall(project: Path) -> None:
    report = steps.run(project, 1, PAINT, (), time=EMA)["report"]
    assert report["samples"]["a1"] > 0
    assert all(0 <= point["A_KA"] <= 100 for point in report["curve"])


def test_fitting_again_gives_the_same_bytes(project: Path) -> None:
    from tasks.fit.node import fit

    steps.run(project, 1, PAINT, time=EMA)
    out = project / "data/step/fit/fit.json"
    before = out.read_bytes()
    fit(project, steps.params(1, method=PAINT, time=EMA))
    assert out.read_bytes() == before


def test_nothing_is_fitted_where_nothing_is_merged(project: Path) -> None:
    found = steps.run(project, 1, PAINT, time={**EMA, "ema_start": "first-expert"})
    assert found["fitted"] is None
    expert, deployed = (load_file(project / f"data/step/{name}.safetensors") for name in ("expert", "deployed"))
    assert all((expert[name] == deployed[name]).all() for name in expert)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time": {"init": "ft", "deploy": "ft"}}, "deploy: ft deploys the expert as it is"),
        ({"train": {"steps": 1}}, r"set train\.holdout"),
        ({"method": {"name": "pain"}}, "there is no 'pain'; there are"),
        ({"method": {**PAINT, "values": 1}}, "values got 1"),
        ({"method": {**PAINT, "low": 2}}, "low 2 is not less than high 1"),
        ({"method": {**PAINT, "setting": "scale"}}, "linear has no number 'scale'; it has weight"),
        ({"method": {**PAINT, "high": 1.5}}, "weight got 1.5"),
        ({"time": {**ALL, "technique": "linear"}}, "weight is the share of two models"),
        ({"time": {**ALL, "technique": "ties"}, "method": {**PAINT, "setting": "density", "low": 0.1}},
         "a running state that depends on density.*settings that can: scale"),
        ({"base": {"model": "tiny.json", "pretrained": "x.safetensors"}}, r"base\.pretraining names none"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused_before_any_work(changes: dict[str, Any], message: str) -> None:
    given = {"time": EMA, "method": PAINT, **changes}
    if isinstance(given["time"].get("technique"), str):
        given["time"] = {**given["time"], "technique": {"name": given["time"]["technique"]}}
    with pytest.raises(UserError, match=message):
        fitting.check(steps.params(1, **given))


def test_conditions_that_cannot_be_measured_are_said_before_any_work() -> None:
    gate = {"require": ["score.first >= 1%", "A_KA >= 1%"]}
    assert fitting.check(steps.params(1, method=PAINT, time=EMA, gate=gate)) == []
    gate = {"require": ["score.base >= 1%"]}
    assert "score.base" in fitting.check(steps.params(1, method=PAINT, time=EMA, gate=gate))[0]


def test_too_little_is_held_out_is_one_sentence(project: Path) -> None:
    from tasks.fit.node import fit

    steps.prepare(project, 1)
    with pytest.raises(UserError, match=r"of a1 none is held out; raise train\.holdout"):
        fit(project, steps.params(1, method=PAINT, time=EMA, train={"steps": 1, "holdout": 1e-9}))
