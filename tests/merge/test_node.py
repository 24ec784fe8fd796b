"""The node ``deploy`` over the steps of a timeline, for every protocol."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tasks.errors import UserError
from tasks.merge import check, merge
from tasks.merge.node import deploy
from tasks.params import Params, Time
from tests.merge.models import Model, base, close, experts, same

PROTOCOLS = [(i, d) for i in ("zs", "ft", "ema") for d in ("ft", "ema", "all") if (i, d) != ("zs", "ft")]


def params(step: int, **time: Any) -> Params:
    sets = [{"name": "one", "test": ["icons:food"]}]
    return Params.model_validate(
        {
            "timeline": "t",
            "step": step,
            "base": {"model": "m", "pretrained": "p"},
            "stream": [],
            "time": time,
            "train": {"steps": 1},
            "evaluate": {"adaptation": sets, "retention": [{"name": "two", "test": ["icons:food"]}]},
        }
    )


def number(project: Path, value: int) -> None:
    (project / "data/history/weights/lineage.json").write_text(json.dumps({"step": value}))


def timeline(project: Path, steps: int, **time: Any) -> list[Model]:
    """Run steps 0 … ``steps`` with random experts, handing on what the flow hands on; returns the deployed models."""
    history, step = project / "data/history/weights", project / "data/step"
    history.mkdir(parents=True)
    step.mkdir(parents=True)
    deployed = []
    models = [base(), *experts(steps)]
    for t in range(steps + 1):
        save_file(models[t], step / "expert.safetensors")
        number(project, t)
        deploy(project, params(t, **time))
        deployed.append(load_file(step / "deployed.safetensors"))
        if t == 0:
            save_file(base(), history / "base.safetensors")
        else:
            (history / "experts").mkdir(exist_ok=True)
            shutil.copy(step / "expert.safetensors", history / "experts" / f"{t:04}.safetensors")
        shutil.rmtree(history / "running", ignore_errors=True)
        shutil.copytree(step / "running", history / "running")
    return deployed


def batch(name: str, models: list[Model], **arguments: Any) -> Model:
    tensors = merge(name, models, base(), **arguments).tensors
    assert tensors is not None
    return tensors


@pytest.mark.parametrize(("init", "deployment"), PROTOCOLS)
@pytest.mark.parametrize("start", ["base", "first-expert"])
def test_protocols(init: str, deployment: str, start: str, tmp_path: Path) -> None:
    technique = {"name": "linear", "weight": 0.25}
    outcome = timeline(tmp_path, 3, init=init, deploy=deployment, technique=technique, ema_start=start)
    models = experts(3)
    assert same(outcome[0], base())
    running = [base()]
    for t, model in enumerate(models, 1):
        first = t == 1 and start == "first-expert"
        running.append(model if first else batch("linear", [model, running[-1]], settings={"weight": 0.25}))
    expected = {"ft": models, "ema": running[1:], "all": [batch("linear", models[:t]) for t in (1, 2, 3)]}[deployment]
    for got, wanted in zip(outcome[1:], expected, strict=True):
        assert same(got, wanted)
    held = tmp_path / "data/step/running"
    assert (held / "ema.safetensors").exists() == ("ema" in (init, deployment))
    assert (held / "all/state.json").exists() == (deployment == "all")
    said = json.loads((held / "running.json").read_text())
    assert said["step"] == 3
    if (held / "ema.safetensors").exists():
        assert same(load_file(held / "ema.safetensors"), running[-1])


@pytest.mark.parametrize("name", ["ties", "dare_ties", "opcm", "consensus", "tsv"])
def test_deploying_all_is_the_batch_merge_with_and_without_a_sequential_form(name: str, tmp_path: Path) -> None:
    outcome = timeline(tmp_path, 3, init="ft", deploy="all", technique={"name": name})
    assert same(outcome[3], batch(name, experts(3)))
    said = json.loads((tmp_path / "data/step/running/running.json").read_text())
    assert said["all"]["report"]["form"] == ("batch" if name in ("consensus", "tsv") else "sequential")
    assert said["all"]["report"]["experts"] == 3


@pytest.mark.parametrize(
    "time", [{"deploy": "all"}, {"deploy": "all", "technique": {"name": "tsv"}}, {"ema_start": "first-expert"}, {}]
)
def test_arrivals_that_were_skipped_do_not_count(time: dict[str, Any], tmp_path: Path) -> None:
    """Step 3 with no expert before it, and step 5 with one, are what steps 1 and 2 would have been."""
    expected = timeline(tmp_path, 2, **time)
    shutil.rmtree(tmp_path / "data")
    history, step = tmp_path / "data/history/weights", tmp_path / "data/step"
    history.mkdir(parents=True)
    step.mkdir(parents=True)
    save_file(base(), history / "base.safetensors")
    (history / "experts").mkdir()
    for t, (at, model) in enumerate(zip((0, 3, 5), [base(), *experts(2)], strict=True)):
        save_file(model, step / "expert.safetensors")
        number(tmp_path, t)
        deploy(tmp_path, params(at, **time))
        assert same(load_file(step / "deployed.safetensors"), expected[t])
        shutil.copy(step / "expert.safetensors", history / "experts" / f"{t:04}.safetensors")
        shutil.rmtree(history / "running", ignore_errors=True)
        shutil.copytree(step / "running", history / "running")


def test_the_share_of_the_new_expert_means_the_same_for_slerp(tmp_path: Path) -> None:
    outcome = timeline(tmp_path, 1, technique={"name": "slerp", "weight": 0.9})
    near, far = experts(1)[0], base()
    for name, got in outcome[1].items():
        if got.size > 1:
            assert abs(got - near[name]).sum() < abs(got - far[name]).sum()
    close(outcome[1], batch("slerp", [near, far], settings={"t": 0.1}))


def with_batchnorm(model: Model, seed: int) -> Model:
    random = np.random.default_rng([3, seed])
    mean, variance = random.standard_normal(4), random.uniform(0, 0.01, 4)
    return {
        **model,
        "visual.bn1.running_mean": mean.astype("f4"),
        "visual.bn1.running_var": variance.astype("f4"),
        "visual.bn1.num_batches_tracked": np.array(10 * seed),
    }


@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "magmax", "opcm", "consensus", "tsv"])
@pytest.mark.parametrize("deployment", ["ema", "all"])
def test_batchnorm_statistics_over_a_timeline_are_those_of_the_mixture(
    name: str, deployment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [with_batchnorm(m, i) for i, m in enumerate([base(), *experts(3)])]
    monkeypatch.setattr("tests.merge.test_node.base", lambda: models[0])
    monkeypatch.setattr("tests.merge.test_node.experts", lambda count: models[1 : count + 1])
    outcome = timeline(tmp_path, 3, init="ft", deploy=deployment, technique={"name": name})
    means, variances = (np.array([m[f"visual.bn1.running_{k}"] for m in models], "f8") for k in ("mean", "var"))
    for t in (1, 2, 3):
        shares = {"ema": [0.5**t, *(0.5 ** (t - i) for i in range(t))], "all": [0.0, *([1 / t] * t)]}[deployment]
        mean = shares @ means[: t + 1]
        np.testing.assert_allclose(outcome[t]["visual.bn1.running_mean"], mean, atol=1e-6)
        wanted = shares @ (variances[: t + 1] + (means[: t + 1] - mean) ** 2)
        np.testing.assert_allclose(outcome[t]["visual.bn1.running_var"], wanted, rtol=1e-5)
    report = json.loads((tmp_path / "data/step/running/running.json").read_text())[deployment]["report"]
    assert "running statistics" in report["notes"][0]


def test_notes_of_a_merge_are_shown(tmp_path: Path) -> None:
    timeline(tmp_path, 1)
    for name in ("step/expert", "history/weights/base", "history/weights/running/ema"):
        save_file(with_batchnorm(base(), 1), tmp_path / "data" / f"{name}.safetensors")
    shown: list[str] = []
    deploy(tmp_path, params(2), lambda what, _done, _total, note="": shown.append(f"{what} {note}"))
    assert sum(line.startswith("note: merging: the running statistics of 1 layer") for line in shown) == 1


def test_running_json_names_no_path_of_the_machine(tmp_path: Path) -> None:
    timeline(tmp_path, 2, deploy="all", technique={"name": "ties"})
    assert str(tmp_path) not in (tmp_path / "data/step/running/running.json").read_text()


def test_missing_inputs_are_named_and_nothing_is_deployed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expert\.safetensors: no such checkpoint"):
        deploy(tmp_path, params(1))
    (tmp_path / "data/step").mkdir(parents=True)
    save_file(base(), tmp_path / "data/step/expert.safetensors")
    with pytest.raises(UserError, match=r"lineage\.json: does not say how many experts"):
        deploy(tmp_path, params(1))
    (tmp_path / "data/history/weights").mkdir(parents=True)
    number(tmp_path, 1)
    with pytest.raises(UserError, match=r"base\.safetensors: no such checkpoint"):
        deploy(tmp_path, params(1))
    assert not (tmp_path / "data/step/deployed.safetensors").exists()


def time_of(**time: Any) -> Time:
    return Time.model_validate(time)


def test_what_cannot_work_fails_before_any_work() -> None:
    with pytest.raises(UserError, match="slerp merges 2 models, and deploy: all merges all 5 experts"):
        check(time_of(deploy="all", technique={"name": "slerp"}), 5)
    with pytest.raises(UserError, match="diverges"):
        check(time_of(technique={"name": "task_arithmetic", "scale": 0.6}), 5)
    with pytest.raises(UserError, match="diverges"):
        check(time_of(init="zs", deploy="ema", technique={"name": "breadcrumbs", "scale": 1.1}), 5)
    with pytest.raises(UserError, match="technique: there is no 'mean'"):
        check(time_of(technique={"name": "mean"}), 5)
    with pytest.raises(UserError, match="linear: no setting 'denisty'"):
        check(time_of(technique={"name": "linear", "denisty": 1}), 5)


def test_what_works_but_badly_is_a_warning() -> None:
    assert check(time_of(technique={"name": "task_arithmetic", "scale": 0.5}), 5) == []
    assert check(time_of(technique={"name": "linear", "weight": 0.5}), 5) == []
    (decay,) = check(time_of(technique={"name": "dare_ties"}), 5)
    assert "drops entries of its own output" in decay
    (cost,) = check(time_of(init="ft", deploy="all", technique={"name": "tsv"}), 5)
    assert "reads all experts" in cost
