"""The node ``measure``, and what ``deploy`` makes of its statistics over the steps of a timeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import UserError
from tasks.measure import check
from tasks.measure.node import measure
from tasks.merge import merge
from tasks.merge.combined import combine
from tasks.merge.node import deploy
from tasks.model import datasets, models
from tasks.model.datasets import Card, Sample
from tasks.params import Base, Params
from tests.project import MODEL, PARAMS

TIME = {"init": "zs", "deploy": "all"}


def params(step: int, technique: Any, **changes: Any) -> Params:
    named = {"name": technique} if isinstance(technique, str) else technique
    time = {**TIME, **changes.pop("time", {}), "technique": named}
    arrival = {"name": f"a{step}", "update": ["images:x"]}
    return Params.model_validate({**PARAMS, "step": step, "arrival": arrival, "time": time, **changes})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tiny.json").write_text(json.dumps(MODEL))
    history = tmp_path / "data/history"
    models.resolve(Base(model="tiny.json", pretrained="base.safetensors"), tmp_path, history / "model")
    (history / "weights").mkdir()
    weights(tmp_path, 0, history / "weights/base.safetensors")
    return tmp_path


def weights(project: Path, seed: int, out: Path) -> None:
    torch.manual_seed(seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    model = models.build(project / "data/history/model").state_dict()
    save_file({n: t.contiguous() for n, t in model.items()}, out)


def arrive(project: Path, step: int, classes: tuple[str, ...] = ("cat", "dog"), folder: str = "") -> None:
    """Random images of two classes, or of captions alone."""
    random = np.random.default_rng(step)
    samples = [
        Sample(f"{i}", random.integers(0, 256, (16, 16, 3)).astype(np.uint8), f"caption {i}", i % 2 if classes else -1)
        for i in range(6)
    ]
    target = project / "data/step/arrival" / folder
    shutil.rmtree(target, ignore_errors=True)
    datasets.write(target, Card(name="a", image_size=16, classes=classes), samples, len(samples))


def timeline(project: Path, steps: int, technique: Any, **time: Any) -> list[tuple[Path, Path]]:
    """Steps 1 … ``steps``: each expert and its statistics; the last step's outputs stay in ``data/step``."""
    history, step = project / "data/history/weights", project / "data/step"
    kept = []
    for t in range(1, steps + 1):
        weights(project, t, step / "expert.safetensors")
        arrive(project, t)
        (history / "lineage.json").write_text(json.dumps({"step": t}))
        now = params(t, technique, time=time)
        measure(project, now)
        deploy(project, now)
        own = project / f"kept/{t}"
        own.mkdir(parents=True)
        files = own / "expert.safetensors", own / "expert.stats.safetensors"
        shutil.copy(step / "expert.safetensors", files[0])
        shutil.copy(step / "statistics/expert.safetensors", files[1])
        kept.append(files)
        shutil.rmtree(history / "running", ignore_errors=True)
        shutil.copytree(step / "running", history / "running")
    return kept


@pytest.mark.parametrize("technique", [{"name": "fisher", "prior": 1e-6}, {"name": "regmean", "ridge": 0.01}])
def test_all_experts_one_at_a_time_are_the_bits_of_all_at_once(technique: dict[str, Any], project: Path) -> None:
    kept = timeline(project, 3, technique)
    settings = {key: value for key, value in technique.items() if key != "name"}
    base = project / "data/history/weights/base.safetensors"
    merge(
        technique["name"], [e for e, _ in kept], base, project / "batch.safetensors", settings=settings,
        statistics=[s for _, s in kept], threads=1,
    )  # fmt: skip
    assert (project / "data/step/deployed.safetensors").read_bytes() == (project / "batch.safetensors").read_bytes()
    note = json.loads((project / "data/step/statistics/statistics.json").read_text())["measured"]
    assert (note["samples"], note["estimator"], note["pool"]) == (6, "expected", "a3") or technique["name"] == "regmean"


@pytest.mark.parametrize("technique", ["fisher", "regmean"])
def test_a_running_model_weighs_as_much_as_its_experts_together(technique: str, project: Path) -> None:
    settings = {"normalize": "none"} if technique == "fisher" else {"ridge": 0.0, "offdiagonal": 0.5}
    kept = timeline(project, 3, {"name": technique, **settings}, init="ema", deploy="ema")
    base = project / "data/history/weights/base.safetensors"
    merged = merge(
        technique, [e for e, _ in kept], base, project / "batch.safetensors", settings=settings,
        statistics=[s for _, s in kept],
    )  # fmt: skip
    assert len(merged.report.measured) == 3
    found, expected = load_file(project / "data/step/deployed.safetensors"), load_file(project / "batch.safetensors")
    for name in ("visual.proj", "visual.transformer.resblocks.0.mlp.c_fc.weight", "token_embedding.weight"):
        if technique == "regmean" and name == "token_embedding.weight":
            continue  # a row that none uses is the mean of the two models, not of the three
        torch.testing.assert_close(found[name], expected[name], rtol=2e-3, atol=2e-4)
    held = json.loads((project / "data/step/running/running.json").read_text())["ema"]
    assert [one["experts"] for one in held["report"]["measured"]] == [1, 2]
    files = [one["file"] for one in held["report"]["measured"]]
    assert files == ["data/step/statistics/expert.safetensors", "data/history/weights/running/ema.stats.safetensors"]
    assert held["report"]["measured"][1]["pool"] == ["a1", "a2"]


def test_became_weighs_the_running_model_by_the_fisher_of_all_its_experts(project: Path) -> None:
    (e1, s1), (e2, s2), (e3, s3) = timeline(project, 3, "became", init="ema", deploy="ema")
    base = project / "data/history/weights/base.safetensors"
    combine(s2, s1, project / "s12.safetensors")
    merge("became", [e2, e1], base, project / "12.safetensors", statistics=[s2, s1])
    both = [s3, project / "s12.safetensors"]
    merge("became", [e3, project / "12.safetensors"], base, project / "123.safetensors", statistics=both)
    assert (project / "123.safetensors").read_bytes() == (project / "data/step/deployed.safetensors").read_bytes()
    first, second = [load_file(s)["fisher/visual.proj"] for s in (s1, s2)]
    torch.testing.assert_close(load_file(both[1])["fisher/visual.proj"], (first + second) / 2)
    held = json.loads((project / "data/step/running/running.json").read_text())["ema"]
    assert held["merges"] == 2


def test_nothing_is_measured_where_no_technique_asks(project: Path) -> None:
    for technique, time in (("linear", {}), ("fisher", {"init": "ft", "deploy": "ft"})):
        measure(project, params(1, technique, time=time))
        assert json.loads((project / "data/step/statistics/statistics.json").read_text()) == {"measured": None}
        assert [file.name for file in (project / "data/step/statistics").iterdir()] == ["statistics.json"]


def test_measuring_again_gives_the_same_bytes(project: Path) -> None:
    weights(project, 1, project / "data/step/expert.safetensors")
    arrive(project, 1)
    out = project / "data/step/statistics/expert.safetensors"
    made = []
    for step in (1, 1, 2):
        measure(project, params(step, "fisher"))
        made.append(out.read_bytes())
    assert made[0] == made[1] != made[2]


def test_an_expert_that_arrives_as_a_file_is_measured_on_the_data_named_for_it(project: Path) -> None:
    weights(project, 1, project / "data/step/expert.safetensors")
    (project / "data/step/arrival").mkdir()
    with pytest.raises(UserError, match=r"arrival 'a1' is an expert without data, and fisher .* under measure"):
        measure(project, params(1, "fisher"))
    arrive(project, 1, classes=(), folder="measure")
    measure(project, params(1, "fisher"))
    assert json.loads((project / "data/step/statistics/statistics.json").read_text())["measured"]["samples"] == 6


def test_experts_without_data_are_refused_before_any_work() -> None:
    stream = [{"name": "vendor", "expert": "e.safetensors"}]
    with pytest.raises(UserError, match="arrival 'vendor' is an expert without data"):
        check(params(1, "fisher", stream=stream))
    check(params(1, "ties", stream=stream))
    check(params(1, "fisher", stream=[{**stream[0], "measure": ["images:pool"]}]))


@pytest.mark.parametrize(
    ("technique", "settings"),
    [("fisher", {"prior": 0.25}), ("fisher", {"prior": 0.25, "normalize": "none"}), ("regmean", {"ridge": 2.0})],
)
def test_an_expert_without_data_weighs_what_the_base_weighs(
    technique: str, settings: dict[str, Any], project: Path
) -> None:
    """Alone, it meets the base half way, whatever the other settings."""
    (project / "data/history/weights/lineage.json").write_text('{"step": 1}')
    weights(project, 1, project / "data/step/expert.safetensors")
    (project / "data/step/arrival").mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    now = params(1, {"name": technique, **settings})
    measure(project, now, lambda *told: said.append(" ".join(map(str, told))))
    deploy(project, now)
    note = json.loads((project / "data/step/statistics/statistics.json").read_text())["measured"]
    assert (note["estimator"], note["pool"]) == ("prior", "no data: the prior's weight")
    assert any("a1 is an expert without data: it weighs what the base weighs" in line for line in said)
    base, expert, merged = (
        load_file(project / path)
        for path in ("data/history/weights/base.safetensors", "data/step/expert.safetensors",
                     "data/step/deployed.safetensors")
    )  # fmt: skip
    for name in ("visual.proj", "visual.transformer.resblocks.0.mlp.c_fc.weight", "visual.conv1.weight"):
        torch.testing.assert_close(merged[name], (base[name] + expert[name]) / 2, rtol=1e-4, atol=1e-5)


def test_an_expert_without_data_joins_others_that_were_measured(project: Path) -> None:
    step, technique = project / "data/step", {"name": "regmean", "ridge": 0.01}
    timeline(project, 1, technique)
    weights(project, 2, step / "expert.safetensors")
    shutil.rmtree(step / "arrival")
    (step / "arrival").mkdir()
    (project / "data/history/weights/lineage.json").write_text('{"step": 2}')
    now = params(2, technique)
    measure(project, now)
    deploy(project, now)
    held = json.loads((step / "running/running.json").read_text())["all"]["report"]
    assert held["measured"][0]["estimator"] == "prior"


def test_nothing_stands_in_where_the_base_weighs_nothing() -> None:
    stream = [{"name": "vendor", "expert": "e.safetensors"}]
    check(params(1, {"name": "fisher", "prior": 0.1}, stream=stream))
    with pytest.raises(UserError, match=r"or give regmean a ridge, which then stands in for them"):
        check(params(1, "regmean", stream=stream))
    with pytest.raises(UserError, match=r"measure: \[SOURCE\]}\)$"):
        check(params(1, "became", stream=stream))
