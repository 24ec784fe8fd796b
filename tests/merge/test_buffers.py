"""Buffers that are no weights, as PyTorch's own modules make them: averaged, copied where equal, or refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tasks.errors import UserError
from tasks.merge import available, buffers, merge
from tests.merge.models import Model, seen


def quantiser(seed: int, sizes: tuple[float, float] = (0.0, 40.0)) -> Model:
    """A vector quantiser with moving averages, as VQ-VAE's and vector-quantize-pytorch's."""
    own = np.random.default_rng(seed)
    return {
        "w": own.standard_normal((4, 4)).astype("f4"),
        "vq._codebook.embed": own.standard_normal((1, 8, 4)).astype("f4"),
        "vq._codebook.embed_avg": own.standard_normal((1, 8, 4)).astype("f4"),
        "vq._codebook.cluster_size": own.uniform(*sizes, (1, 8)).astype("f4"),
        "vq._ema_cluster_size": own.integers(1, 9, 8),
        "vq._ema_w": own.standard_normal((8, 4)).astype("f4"),
    }


@pytest.mark.parametrize("technique", sorted(available()))
def test_counts_and_sums_of_a_vector_quantiser_are_means_for_every_technique(technique: str) -> None:
    base, models = quantiser(0, (90, 99)), [quantiser(1), quantiser(2)]
    result = merge(technique, models, base, **seen(technique, models)).tensors
    assert result is not None
    for name in ("_codebook.cluster_size", "_codebook.embed_avg", "_ema_w"):
        wanted = np.mean([one[f"vq.{name}"].astype("f8") for one in models], axis=0)
        np.testing.assert_allclose(result[f"vq.{name}"], wanted, rtol=1e-6, atol=1e-7, err_msg=name)
    assert (result["vq._codebook.cluster_size"] >= 0).all()
    counts = np.mean([one["vq._ema_cluster_size"] for one in models], axis=0)
    assert np.abs(result["vq._ema_cluster_size"] - counts).max() <= 0.5  # whole numbers


def test_a_sum_of_task_vectors_makes_no_count_negative() -> None:
    base, models = quantiser(0, (90, 99)), [quantiser(i) for i in range(1, 5)]
    result = merge("task_arithmetic", models, base, settings={"scale": 3.0}).tensors
    assert result is not None
    assert (result["vq._codebook.cluster_size"] >= 0).all()
    assert (result["vq._ema_cluster_size"] >= 0).all()


def state_of(module: torch.nn.Module) -> Model:
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def spectral(seed: int, *, new: bool) -> Model:
    torch.manual_seed(seed)
    norm = torch.nn.utils.parametrizations.spectral_norm if new else torch.nn.utils.spectral_norm
    return state_of(torch.nn.Sequential(torch.nn.Linear(3, 3), norm(torch.nn.Linear(6, 5))))


def observed(seed: int) -> Model:
    """Float weights with fake quantisation, trained a little: as quantisation-aware training saves them."""
    from torch.ao.quantization import FakeQuantize

    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), FakeQuantize())
    model(torch.randn(16, 4) * (seed + 1) + seed)
    return state_of(model)


@pytest.mark.parametrize("technique", ["linear", "task_arithmetic", "ties", "slerp"])
@pytest.mark.parametrize("kind", ["spectral, old", "spectral, new", "observers"])
def test_buffers_derived_from_one_model_are_refused_where_they_differ(
    kind: str, technique: str, tmp_path: Path
) -> None:
    def make(seed: int) -> Model:
        return observed(seed) if kind == "observers" else spectral(seed, new=kind.endswith("new"))

    models = [make(0), make(1)]
    for i, one in enumerate(models):
        save_file(one, tmp_path / f"{i}.safetensors")
    files, out = [tmp_path / f"{i}.safetensors" for i in range(2)], tmp_path / "out.safetensors"
    base = None if technique in ("linear", "slerp") else files[0]
    what = "fake quantisation" if kind == "observers" else "spectral norm"
    with pytest.raises(UserError, match=rf"differs between the models .*{what}.*--on-mismatch base"):
        merge(technique, files, base, out)
    assert not out.exists()
    report = merge(technique, files, base, out, on_mismatch="base").report
    ours = [name for name in models[0] if buffers.derived(name, models[0])]
    assert ours
    assert set(ours) <= report.kept.keys()
    assert all(load_file(out)[name].tobytes() == models[0][name].tobytes() for name in ours)


def test_derived_buffers_that_all_models_share_are_copied() -> None:
    one = {**spectral(0, new=False), "1.min_val": np.array(np.inf, "f4"), "1.max_val": np.array(-np.inf, "f4")}
    other = {**one, "1.weight_orig": one["1.weight_orig"] + 1}
    result = merge("linear", [one, other]).tensors
    assert result is not None
    for name in ("1.weight_u", "1.weight_v", "1.min_val", "1.max_val"):
        assert result[name].tobytes() == one[name].tobytes()
    np.testing.assert_allclose(result["1.weight_orig"], one["1.weight_orig"] + 0.5, rtol=1e-6)


def rotary(seed: int, theta: float, dtype: str = "f4", *, scaled: bool = False) -> Model:
    """A layer with a rotary position embedding, whose long waves a context of more tokens makes longer."""
    frequencies = theta ** -(np.arange(0, 64, 2, "f8") / 64)
    longer = np.where(frequencies < 1e-3, frequencies / 8, frequencies) if scaled else frequencies
    weight = np.random.default_rng(seed).standard_normal((4, 4)).astype("f4")
    tables = {"cos_cached": np.cos, "freqs_sin": np.sin}
    made = {f"rotary.{name}": of(np.arange(8)[:, None] * longer).astype(dtype) for name, of in tables.items()}
    return {"w": weight, "layers.0.rotary_emb.inv_freq": longer.astype(dtype), **made}


@pytest.mark.parametrize("technique", ["linear", "task_arithmetic", "ties", "slerp"])
@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_a_rotary_embedding_is_copied_whatever_its_dtype(technique: str, dtype: str) -> None:
    one, other = rotary(0, 1e4), rotary(1, 1e4, dtype)
    found = merge(technique, [one, other], None if technique in ("linear", "slerp") else one).tensors
    assert found is not None
    assert all(found[name].tobytes() == one[name].tobytes() for name in one if name != "w")
    assert found["w"].tobytes() != one["w"].tobytes()


@pytest.mark.parametrize("dtype", ["f4", "f2"])
@pytest.mark.parametrize("other", [{"theta": 1e6}, {"theta": 1e4, "scaled": True}])
def test_rotary_embeddings_of_two_configurations_are_refused(other: dict[str, Any], dtype: str) -> None:
    models = [rotary(0, 1e4), rotary(1, dtype=dtype, **other)]
    with pytest.raises(UserError, match=r"inv_freq' differs .* rotary position embedding.*--on-mismatch base"):
        merge("linear", models)
    found = merge("linear", models, on_mismatch="base").tensors
    assert found is not None
    assert all(found[name].tobytes() == models[0][name].tobytes() for name in models[0] if name != "w")


@pytest.mark.parametrize(
    "names",
    [["fc.weight_g", "fc.weight_v"], ["norm.scale"], ["logit_scale"], ["min_val"], ["attn.u", "attn.v"], ["eps"]],
)
def test_weights_that_only_sound_like_buffers_are_merged(names: list[str]) -> None:
    assert not [name for name in names if buffers.derived(name, names) or re.search(buffers.AVERAGED, name)]
    models = [{name: np.full(3, value, "f4") for name in names} for value in (1.0, 3.0)]
    result = merge("linear", models).tensors
    assert result is not None
    assert all((result[name] == 2).all() for name in names)
