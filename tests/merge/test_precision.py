"""Float64, infinities that all models share, and every dtype of the safetensors format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tasks.errors import UserError
from tasks.merge import advance, available, create, merge
from tasks.model.dtypes import BITS, FLOATS, INTEGERS
from tests.merge.models import Model, base, close, experts, same, seen
from tests.merge.raw import write_raw


def wide(model: Model) -> Model:
    """The same in float64, with digits that float32 does not have."""
    return {name: np.asarray(value.astype("f8") * (1 + 1e-10)) for name, value in model.items()}


@pytest.mark.parametrize("technique", sorted(available()))
def test_a_float64_model_merged_with_itself_is_itself(technique: str) -> None:
    """Copies are promised bit for bit by linear; task vectors of zero add nothing."""
    one = {**wide(base()), "counter": np.array([16777217.0])}
    tensors = merge(technique, [one, one], one, **seen(technique, [one, one])).tensors
    assert tensors is not None
    if technique in ("slerp", "karcher"):  # weights of a half each, and a norm divided by itself
        for name in one:
            np.testing.assert_allclose(tensors[name], one[name], rtol=1e-14)
    else:
        assert same(tensors, one)


@pytest.mark.parametrize("technique", sorted(available()))
@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_float64_is_merged_as_float32_is_and_keeps_more_digits(technique: str, scope: str) -> None:
    settings = {"scope": scope} if "scope" in available()[technique].model_fields else {}
    models, zero = [wide(e) for e in experts(2)], wide(base())
    tensors = merge(technique, models, zero, settings=settings, **seen(technique, models)).tensors
    assert tensors is not None
    assert all(value.dtype == np.float64 for value in tensors.values())
    if technique.startswith(("dare", "della")):
        return  # draws follow the content
    narrow = merge(technique, experts(2), base(), settings=settings, **seen(technique, models)).tensors
    assert narrow is not None
    close({n: v.astype("f4") for n, v in tensors.items()}, narrow, tolerance=1e-4)
    assert any((value != value.astype("f4")).any() for value in tensors.values())


def test_means_of_float64_are_exact_to_its_own_precision() -> None:
    models = [wide(e) for e in experts(3)]
    tensors = merge("linear", models).tensors
    assert tensors is not None
    for name, value in tensors.items():
        np.testing.assert_allclose(value, np.mean([m[name] for m in models], axis=0), rtol=1e-14, atol=1e-15)


def test_order_statistics_of_float64_are_exact() -> None:
    """A threshold that float32 cannot tell from its neighbours."""
    tau = 1 + np.arange(64, dtype="f8") * 1e-12
    tensors = merge("ties", [{"w": tau}], {"w": np.zeros(64)}, settings={"density": 0.25}).tensors
    assert tensors is not None
    np.testing.assert_array_equal(tensors["w"], np.where(tau >= np.sort(tau)[-16], tau, 0))


def test_order_statistics_of_float64_where_many_are_equal() -> None:
    random = np.random.default_rng(0)
    tau = random.choice([0.5, 0.5 + 1e-12, 2.0], 1 << 16, p=[0.6, 0.3, 0.1])
    tensors = merge("ties", [{"w": tau}], {"w": np.zeros(1 << 16)}, settings={"density": 0.3}).tensors
    assert tensors is not None
    np.testing.assert_array_equal(tensors["w"], np.where(tau >= 0.5 + 1e-12, tau, 0))


def test_float64_one_expert_at_a_time(tmp_path: Path) -> None:
    save_file(wide(base()), tmp_path / "base.safetensors")
    previous = None
    for i, model in enumerate(experts(3)):
        save_file(wide(model), tmp_path / f"{i}.safetensors")
        advance(create("ties", {}), tmp_path / f"{i}.safetensors", tmp_path / "base.safetensors", previous,
                tmp_path / f"state{i}", tmp_path / "out.safetensors")  # fmt: skip
        previous = tmp_path / f"state{i}"
    tensors = merge("ties", [wide(e) for e in experts(3)], wide(base())).tensors
    assert tensors is not None
    assert same(load_file(tmp_path / "out.safetensors"), tensors)


def test_float64_that_a_float32_base_rounds_is_said() -> None:
    outcome = merge("task_arithmetic", [wide(e) for e in experts(2)], base())
    assert outcome.tensors is not None
    assert all(value.dtype == np.float32 for value in outcome.tensors.values())
    (note,) = outcome.report.notes
    assert note.startswith("computed in float64 and rounded to the output's dtype: logit_scale,")
    assert merge("linear", [wide(e) for e in experts(2)]).report.notes == []


def mask() -> np.ndarray:
    return np.triu(np.full((77, 77), -np.inf, "f4"), 1)


@pytest.mark.parametrize("name", ["visual.attn_mask", "text.causal_mask", "causal.buffer"])
@pytest.mark.parametrize("technique", ["linear", "ties", "opcm", "pcb"])
def test_infinities_that_all_models_share_are_copied(name: str, technique: str, tmp_path: Path) -> None:
    models = [{**m, name: mask()} for m in (base(), *experts(2))]
    outcome = merge(technique, models[1:], models[0])
    assert outcome.tensors is not None
    assert outcome.tensors[name].tobytes() == mask().tobytes()
    assert list(outcome.report.kept) == [name]
    assert outcome.report.kept[name].endswith("the same in all models")
    plain = merge(technique, experts(2), base()).tensors
    assert plain is not None
    assert same({n: v for n, v in outcome.tensors.items() if n != name}, plain)
    for i, model in enumerate(models):
        save_file(model, tmp_path / f"{i}.safetensors")
    merge(technique, [tmp_path / "1.safetensors", tmp_path / "2.safetensors"], tmp_path / "0.safetensors",
          tmp_path / "out.safetensors")  # fmt: skip
    assert same(load_file(tmp_path / "out.safetensors"), outcome.tensors)


def test_infinities_in_one_model_are_refused_and_nans_in_all() -> None:
    other = mask()
    other[0, 1] = 0
    with pytest.raises(
        UserError, match="tensor 'buffer' holds infinity where the models differ; a mask must be the sa"
    ):
        merge("linear", [{**base(), "buffer": mask()}, {**base(), "buffer": other}])
    broken = {**base(), "buffer": np.full(3, np.nan, "f4")}
    with pytest.raises(UserError, match="tensor 'buffer' holds NaN or infinity"):
        merge("linear", [broken, broken])


def test_finite_masks_are_copied_where_equal_and_said_where_not() -> None:
    finite = np.where(mask() < 0, np.finfo("f4").min, 0)
    report = merge(
        "task_arithmetic", [{**base(), "visual.attn_mask": finite}], {**base(), "visual.attn_mask": finite}
    ).report
    assert report.kept == {"visual.attn_mask": "a mask, the same in all models"}
    report = merge(
        "task_arithmetic", [{**base(), "visual.attn_mask": finite / 2}], {**base(), "visual.attn_mask": finite}
    ).report
    assert report.notes == [
        "visual.attn_mask is named like a mask and differs between the models; it was merged like a weight"
    ]


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_every_dtype_of_the_format_is_copied_if_equal(dtype: str, tmp_path: Path) -> None:
    for name in "ab":
        write_raw(tmp_path / f"{name}.safetensors", [("odd", dtype, (8, 4)), ("w", "F32", (4, 4))], fill=1)
    out = tmp_path / "m.safetensors"
    report = merge("linear", [tmp_path / "a.safetensors", tmp_path / "b.safetensors"], out=out).report
    assert ("odd" in report.kept) == (dtype not in FLOATS)
    assert _odd(out, dtype) == _odd(tmp_path / "a.safetensors", dtype)


def _odd(path: Path, dtype: str) -> bytes:
    from tasks.model.sources import FileSource, raw_bytes

    with FileSource(path) as source:
        assert source.entries["odd"].dtype == dtype
        return raw_bytes(source, "odd", 0, source.entries["odd"].bytes).tobytes()


@pytest.mark.parametrize("dtype", sorted(BITS.keys() - {*FLOATS, *INTEGERS}))
def test_a_dtype_that_cannot_be_merged_is_refused_by_name_where_it_differs(dtype: str, tmp_path: Path) -> None:
    for name, fill in (("a", 1), ("b", 2)):
        write_raw(tmp_path / f"{name}.safetensors", [("odd", dtype, (8,)), ("w", "F32", (4, 4))], fill=fill)
    with pytest.raises(UserError, match=f"tensor 'odd' is {dtype} and differs between the models"):
        merge("linear", [tmp_path / "a.safetensors", tmp_path / "b.safetensors"])


def test_dictionaries_of_odd_tensors() -> None:
    eighth = torch.ones(4).to(torch.float8_e4m3fn)
    tensors = merge(
        "linear", [{"w": torch.ones(4), "f": eighth, "c": torch.ones(2, dtype=torch.complex64)}] * 2
    ).tensors
    assert tensors is not None
    assert torch.equal(tensors["f"].view(torch.uint8), eighth.view(torch.uint8))
    assert tensors["c"].dtype == torch.complex64
    big_endian = {"w": np.arange(3, dtype=">f4")}
    tensors = merge("linear", [big_endian, big_endian]).tensors
    assert tensors is not None
    np.testing.assert_array_equal(tensors["w"], [0, 1, 2])
    for odd, message in ((np.array(["a"]), "tensor 'w' is of dtype <U1"), ([1.0], "tensor 'w' is a list"),
                         (np.ones(2, np.longdouble), "safetensors does not have")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            merge("linear", [{"w": odd}])
