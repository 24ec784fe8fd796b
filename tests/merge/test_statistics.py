"""BatchNorm's running statistics: those of the mixture of the models' data, whatever the technique."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tasks.errors import UserError
from tasks.merge import advance, available, create, merge
from tests.merge.models import Model, same, seen

LAYER = "visual.bn1"


def model(seed: int, *, variance: tuple[float, float] = (0.2, 0.5), count: int = 1000) -> Model:
    shared, own = np.random.default_rng(0), np.random.default_rng([2, seed])
    return {
        f"{LAYER}.weight": np.float32(1 + 0.1 * own.standard_normal(8)).astype("f4"),
        "visual.conv1.weight": (shared.standard_normal((8, 27)) + 0.01 * own.standard_normal((8, 27))).astype("f4"),
        f"{LAYER}.running_mean": own.standard_normal(8).astype("f4"),
        f"{LAYER}.running_var": own.uniform(*variance, 8).astype("f4"),
        f"{LAYER}.num_batches_tracked": np.array(count + 10 * seed),
    }


def base() -> Model:
    return model(0, variance=(0.9, 1.1))


def mixture(models: list[Model], weights: list[float]) -> Model:
    """As the issue has it: Σ w m and Σ w (v + m²) − (Σ w m)²."""
    shares = np.array(weights) / sum(weights)
    means = np.array([m[f"{LAYER}.running_mean"] for m in models], np.float64)
    variances = np.array([m[f"{LAYER}.running_var"] for m in models], np.float64)
    mean = shares @ means
    return {
        f"{LAYER}.running_mean": mean.astype("f4"),
        f"{LAYER}.running_var": (shares @ (variances + means**2) - mean**2).astype("f4"),
        f"{LAYER}.num_batches_tracked": np.rint(
            shares @ [float(m[f"{LAYER}.num_batches_tracked"]) for m in models]
        ).astype("i8"),
    }


def close_to(result: Model, wanted: Model) -> None:
    for name, value in wanted.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
        assert result[name].dtype == value.dtype


def merged(technique: str, models: list[Model], **arguments: Any) -> Model:
    tensors = merge(technique, models, base(), **seen(technique, models), **arguments).tensors
    assert tensors is not None
    return tensors


@pytest.mark.parametrize("technique", sorted(available()))
def test_statistics_are_the_mixtures_for_every_technique(technique: str) -> None:
    models = [model(1), model(2)]
    close_to(merged(technique, models), mixture(models, [1, 1]))


@pytest.mark.parametrize(
    ("technique", "arguments"),
    [
        ("task_arithmetic", {"settings": {"scale": 5.0}}),
        ("task_arithmetic", {"weights": [1.0, -3.0, 1.0]}),
        ("task_arithmetic", {"weights": [-1.0, -3.0, -1.0]}),
        ("linear", {"weights": [5.0, -2.0, 1.0]}),
        ("magmax", {"settings": {"scale": -1.5}}),
        ("dare_linear", {"settings": {"density": 0.1}}),
        ("opcm", {"settings": {"lines": {"alpha": 3, "beta": 2}}}),
    ],
)
def test_no_variance_is_negative(technique: str, arguments: dict[str, Any]) -> None:
    models = [model(i, variance=(0.0, 0.01)) for i in (1, 2, 3)]
    variance = merged(technique, models, **arguments)[f"{LAYER}.running_var"]
    assert (variance >= 0).all()
    assert np.isfinite(1 / np.sqrt(variance + 1e-5)).all()


@pytest.mark.parametrize(
    ("mean", "variance"), [("bn/moving_mean", "bn/moving_variance"), ("batch_stats.bn.mean", "batch_stats.bn.var")]
)
def test_statistics_of_other_libraries_are_the_mixtures(mean: str, variance: str) -> None:
    def renamed(own: Model) -> Model:
        names = {f"{LAYER}.running_mean": mean, f"{LAYER}.running_var": variance}
        return {names.get(name, name): value for name, value in own.items()}

    models = [model(1), model(2)]
    outcome = merge("task_arithmetic", [renamed(m) for m in models], renamed(base()), settings={"scale": 5.0})
    assert outcome.tensors is not None
    assert same(
        {n: outcome.tensors[n] for n in (mean, variance)},
        {n: v for n, v in renamed(merged("task_arithmetic", models)).items() if n in (mean, variance)},
    )
    assert outcome.report.notes[0].startswith("the running statistics of 2 layers")


def test_weights_are_the_shares_of_the_mixture() -> None:
    models = [model(1), model(2), model(3)]
    close_to(merged("linear", models, weights=[1, 2, 5]), mixture(models, [1, 2, 5]))
    close_to(merged("slerp", models[:2], settings={"t": 0.25}), mixture(models[:2], [0.75, 0.25]))
    close_to(merged("task_arithmetic", models, weights=[1, -7, 1]), mixture([models[0], models[2]], [1, 1]))


def test_copies_of_one_model_keep_its_statistics_bit_for_bit() -> None:
    one = model(1)
    result = merged("ties", [one, one, one])
    for name in mixture([one], [1]):
        assert result[name].tobytes() == one[name].tobytes()


@given(
    st.lists(
        st.tuples(st.floats(-1e3, 1e3, width=32), st.floats(0, 1e3, width=32), st.floats(-2, 2)), min_size=1, max_size=6
    )
)
@settings(max_examples=60, deadline=None)
def test_any_mixture_is_the_formulas_and_not_negative(of: list[tuple[float, float, float]]) -> None:
    models = [
        {"w": np.ones(2, "f4"), "bn.running_mean": np.array([m], "f8"), "bn.running_var": np.array([v], "f8")}
        for m, v, _ in of
    ]
    weights = np.maximum(0, [w for _, _, w in of])
    weights = weights if weights.any() else np.ones(len(of))
    tensors = merge("task_arithmetic", models, {**models[0]}, weights=[w for _, _, w in of]).tensors
    assert tensors is not None
    shares = weights / weights.sum()
    mean = float(shares @ [m for m, _, _ in of])
    wanted = float(shares @ [v + (m - mean) ** 2 for m, v, _ in of])
    assert tensors["bn.running_var"][0] >= 0
    np.testing.assert_allclose(tensors["bn.running_var"], [wanted], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(tensors["bn.running_mean"], [mean], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("technique", ["linear", "ties", "dare_ties", "opcm", "model_stock"])
def test_one_expert_at_a_time_gives_the_statistics_of_all_at_once(technique: str, tmp_path: Path) -> None:
    save_file(base(), tmp_path / "base.safetensors")
    models, previous = [model(i) for i in (1, 2, 3)], None
    for i, one in enumerate(models):
        save_file(one, tmp_path / f"{i}.safetensors")
        state = tmp_path / f"state-{i}"
        report = advance(
            create(technique, {}), tmp_path / f"{i}.safetensors", tmp_path / "base.safetensors", previous, state,
            tmp_path / "out.safetensors",
        )  # fmt: skip
        previous = state
    assert report.statistics == sorted(mixture(models, [1, 1, 1]))
    result = load_file(tmp_path / "out.safetensors")
    close_to(result, mixture(models, [1, 1, 1]))
    names = mixture(models, [1, 1, 1])
    assert same({n: result[n] for n in names}, {n: v for n, v in merged(technique, models).items() if n in names})


def test_a_model_without_batchnorm_leaves_no_statistics(tmp_path: Path) -> None:
    plain = {"w": np.ones(3, np.float32)}
    save_file(plain, tmp_path / "w.safetensors")
    path = tmp_path / "w.safetensors"
    report = advance(create("linear", {}), path, path, None, tmp_path / "state", tmp_path / "out.safetensors")
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["mean.safetensors", "state.json"]
    assert not {"statistics", "notes", "tied"} & report.as_json().keys()


def test_statistics_are_named_in_a_note() -> None:
    report = merge("ties", [model(1)], base()).report
    assert report.merged == 2
    assert report.statistics == sorted(mixture([model(1)], [1]))
    assert any("1 layer were averaged" in line for line in report.summary())
    assert "num_batches_tracked" in json.dumps(report.as_json())


def test_a_negative_variance_in_an_input_is_refused_by_name() -> None:
    bad = model(1)
    bad[f"{LAYER}.running_var"][3] = -0.5
    with pytest.raises(UserError, match=r"expert 2: 'visual\.bn1\.running_var' holds a negative variance"):
        merge("linear", [model(2), bad])


def test_a_batchnorm_layer_is_finite_after_a_sum_of_task_vectors() -> None:
    import torch

    result = merged("task_arithmetic", [model(i) for i in range(1, 5)], settings={"scale": 1.0})
    layer = torch.nn.BatchNorm2d(8).eval()
    state = {n.removeprefix(f"{LAYER}."): torch.from_numpy(np.asarray(v)) for n, v in result.items() if LAYER in n}
    state["bias"] = torch.zeros(8)
    layer.load_state_dict(state)
    assert torch.isfinite(layer(torch.randn(2, 8, 3, 3))).all()


@pytest.mark.parametrize(("mean", "variance"), [("moving_mean", "moving_variance"), ("moving_mean", "moving_var")])
def test_names_of_other_libraries_are_statistics_too(mean: str, variance: str) -> None:
    """Those of models that come from TensorFlow: as with PyTorch's names, no variance is negative."""

    def other(seed: int, least: float) -> Model:
        own = np.random.default_rng([3, seed])
        return {
            "bn/moving_mean": own.standard_normal(8).astype("f4"),
            f"bn/{variance}": own.uniform(least, least + 0.1, 8).astype("f4"),
            "w": own.standard_normal((4, 4)).astype("f4"),
        }

    models = [other(1, 0.1), other(2, 0.2)]
    outcome = merge("task_arithmetic", models, other(0, 2.0), settings={"scale": 1.5})
    assert outcome.tensors is not None
    means, variances = ([one[f"bn/{name}"].astype(float) for one in models] for name in (mean, variance))
    expected = np.mean([v + m**2 for v, m in zip(variances, means, strict=True)], 0) - np.mean(means, 0) ** 2
    np.testing.assert_allclose(outcome.tensors[f"bn/{variance}"], expected, rtol=1e-6)
