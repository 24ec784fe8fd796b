"""What is refused because it is no model to merge, and models that have too little in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tasks.errors import UserError
from tasks.merge import merge
from tasks.model import dialects
from tests.merge.models import Model, base, experts
from tests.merge.raw import write_raw

LORA = "base_model.model.visual.transformer.resblocks.0.mlp.c_fc.lora_"


def open_clip_names() -> list[str]:
    return [*base(), "visual.class_embedding", "transformer.resblocks.0.attn.in_proj_weight"]


def transformers_names() -> list[str]:
    layer = "text_model.encoder.layers.0."
    return ["logit_scale", "visual_projection.weight", "text_projection.weight", f"{layer}self_attn.q_proj.weight",
            f"{layer}mlp.fc1.weight", "vision_model.embeddings.class_embedding"]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (open_clip_names(), "open_clip"),
        ([f"module.{name}" for name in open_clip_names()], "open_clip"),
        (transformers_names(), "transformers CLIP"),
        ([f"_orig_mod.{name}" for name in transformers_names()], "transformers CLIP"),
        (["vision_model.embeddings.class_embedding"], "transformers CLIP"),
        (["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"], "transformers decoder"),
        (["blocks.0.attn.qkv.weight", "cls_token"], "timm"),
        ([f"{LORA}A.weight", f"{LORA}B.weight"], "a LoRA adapter's"),
        (["weight", "bias"], "unknown"),
        ([], "unknown"),
    ],
)
def test_names_are_recognised(names: list[str], known: str) -> None:
    assert dialects.naming(names) == known


def in_transformers_names() -> Model:
    random = np.random.default_rng(0)
    return {
        "logit_scale": np.array(4.6, np.float32),
        "text_model.embeddings.token_embedding.weight": random.standard_normal((40, 8)).astype("f4"),
        **{f"text_model.encoder.layers.{i}.mlp.fc1.weight": np.ones((8, 24), "f4") for i in range(7)},
    }


@pytest.mark.parametrize("technique", ["linear", "task_arithmetic", "ties", "slerp"])
def test_models_that_share_one_tensor_are_refused_with_names_of_both(technique: str, tmp_path: Path) -> None:
    models = {"base": base(), "theirs": in_transformers_names()}
    for name, model in models.items():
        save_file(model, tmp_path / f"{name}.safetensors")
    ours, theirs = (tmp_path / f"{name}.safetensors" for name in models)
    arguments: dict[str, Any] = {"out": tmp_path / "out.safetensors"}
    arguments |= (
        {"experts": [ours, theirs]} if technique in ("linear", "slerp") else {"experts": [theirs], "base": ours}
    )
    with pytest.raises(UserError, match="shares 1 of 9 tensors") as caught:
        merge(technique, **arguments)
    message = str(caught.value)
    assert "has open_clip names (text_projection, token_embedding.weight" in message
    assert "has transformers CLIP names (text_model.embeddings.token_embedding.weight" in message
    for named in (message.partition("open_clip names (")[2], message.partition("transformers CLIP names (")[2]):
        assert named.partition(")")[0].count(", ") == 4  # five names, and how many more
    assert "--on-missing keep" in message
    assert not (tmp_path / "out.safetensors").exists()
    report = merge(technique, **arguments, on_missing="keep").report
    assert (report.merged, len(report.kept), len(report.dropped)) == (1, 8, 8)
    (copied, left_out) = report.summary()
    assert copied.startswith("copied 8 tensors unmerged (missing from expert")
    assert left_out.startswith("left out 8 tensors that only experts have")


def test_half_of_the_parameters_is_enough() -> None:
    whole = {"a": np.ones(10, "f4"), "b": np.ones(10, "f4"), "n": np.arange(100)}
    part = {"a": np.zeros(10, "f4")}
    assert merge("task_arithmetic", [part], whole).report.kept == {
        "b": "missing from expert 1",
        "n": "I64 is not merged",
    }
    whole["b"] = np.ones(11, "f4")
    with pytest.raises(UserError, match=r"lacks b, n\. Give complete models"):
        merge("task_arithmetic", [part], whole)
    with pytest.raises(UserError, match="none of its tensors can be merged"):
        merge("task_arithmetic", [{**part, "b": whole["b"]}, {"b": whole["b"]}, {"c": np.ones(1, "f4")}], whole)


def test_integers_in_place_of_weights_are_said_to_be_no_weights() -> None:
    base = {"a": np.ones(10, "f4"), "b": np.ones(100, "f4")}
    with pytest.raises(UserError, match="names and shapes are the same, but few are floating-point weights in both"):
        merge("task_arithmetic", [{"a": np.zeros(10, "f4"), "b": np.arange(100)}], base)


def test_models_of_other_shapes_are_refused_with_both_shapes() -> None:
    large = {name: np.concatenate([value, value], axis=-1) if value.ndim else value for name, value in base().items()}
    with pytest.raises(UserError, match=r"shape \[8, 10\], the base has \[8, 5\].* one architecture"):
        merge("ties", [large], base())


ADAPTERS = {
    "LoRA": [f"{LORA}A.weight", f"{LORA}B.weight"],
    "LoRA of several": ["unet.lora_A.default.weight", "unet.lora_B.default.weight"],
    "LoRA of kohya": ["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "lora_te.lora_up.weight"],
    "DoRA": ["base_model.model.fc.lora_magnitude_vector"],
    "LoHa": ["fc.hada_w1_a", "fc.hada_w1_b"],
    "LoKr": ["fc.lokr_w1", "fc.lokr_w2"],
    "IA3": ["base_model.model.fc.ia3_l"],
    "VeRA": ["base_model.model.fc.vera_lambda_b", "base_model.vera_A"],
    "prompt": ["prompt_embeddings"],
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_are_refused_with_the_way_out(kind: str) -> None:
    adapter = {name: np.ones((4, 4), "f4") for name in ADAPTERS[kind]}
    for models in ([adapter, adapter], [base(), {**base(), **adapter}]):
        with pytest.raises(
            UserError, match=rf"is a {kind.split()[0].replace('DoRA', 'LoRA')} adapter .*merge_and_unload"
        ):
            merge("linear", models)


def test_names_that_only_resemble_an_adapters_are_a_models() -> None:
    names = ["exploration.weight", "flora_a.weight", "colorado.bias", "prompt_pool.weight", "lora.weight"]
    assert dialects.adapter(names) is None


def test_an_adapters_folder_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    save_file({f"{LORA}A.weight": np.ones((4, 4), "f4")}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"is a PEFT adapter, which changes a base; give that base too \(--base\)"):
        merge("linear", [tmp_path])


QUANTISED: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {
    "weight_scale": [("fc.weight", "I8", (4, 4)), ("fc.weight_scale", "F32", (4,))],
    "weight_scale_inv": [("fc.weight", "F8_E4M3", (4, 4)), ("fc.weight_scale_inv", "F32", (1, 1))],
    "GPTQ": [("fc.qweight", "I32", (4, 4)), ("fc.qzeros", "I32", (1, 4)), ("fc.scales", "F16", (1, 4))],
    "AWQ": [("fc.qweight", "I32", (4, 4)), ("fc.scales", "F16", (1, 4))],
    "scales and zeros": [("fc.weight", "U8", (4, 4)), ("fc.scales", "F16", (4,)), ("fc.zeros", "F16", (4,))],
    "LLM.int8": [("fc.weight", "I8", (4, 4)), ("fc.SCB", "F32", (4,))],
    "NF4": [("fc.weight", "U8", (8, 1)), ("fc.weight.absmax", "U8", (1,)),
            ("fc.weight.quant_state.bitsandbytes__nf4", "U8", (30,))],
    "compressed-tensors": [("fc.weight_packed", "I32", (4, 1)), ("fc.weight_scale", "BF16", (4, 1))],
    "quanto": [("fc.weight._data", "I8", (4, 4)), ("fc.weight._scale", "F32", (4, 1))],
    "torchao": [("fc.weight:int_data", "I8", (4, 4)), ("fc.weight:scale", "F32", (4,))],
    "torch": [("fc.weight", "I8", (4, 4)), ("fc.scale", "F32", ()), ("fc.zero_point", "I64", ())],
    "MXFP4": [("mlp.gate_up_proj_blocks", "U8", (4, 4)), ("mlp.gate_up_proj_scales", "U8", (4,))],
    "fp8 of ComfyUI": [("fc.weight", "F8_E4M3", (4, 4)), ("fc.scale_weight", "F32", ())],
}  # fmt: skip


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_are_refused_with_the_way_out(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    write_raw(path, [*QUANTISED[kind], ("fc.bias", "F32", (4,))])
    named = QUANTISED[kind][0][0].replace(".", r"\.")
    with pytest.raises(UserError, match=rf"holds quantised weights \('{named}'.*Dequantise it first"):
        merge("linear", [path, path], out=tmp_path / "m.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["q.safetensors"]


def test_integers_beside_scales_that_are_weights_are_no_quantisation(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    items = [("position_ids", "I64", (1, 77)), ("logit_scale", "F32", ()), ("mask", "U8", (4, 4)),
             ("attn.relative_position_index", "I64", (9, 9)), ("attn.logit_scale", "F32", (3, 1, 1)),
             ("norm.scale", "F32", (4,)), ("w", "F32", (4, 4)), ("heads.W_q", "F32", (4, 4)),
             ("heads.W_q.scale", "F32", (4,))]  # fmt: skip
    write_raw(path, items)
    assert merge("linear", [path, path]).report.merged == 6


def test_a_merge_of_models_with_classifiers_left_out_is_one_line() -> None:
    models = [
        {**one, "classifier": np.ones(3, "f4"), **{f"ids.{i}": np.arange(2) for i in range(9)}} for one in experts(2)
    ]
    zero = {**base(), **{f"ids.{i}": np.arange(2) for i in range(9)}}
    lines = merge("ties", models, zero).report.summary()
    assert lines == [
        "copied 9 tensors unmerged (I64 is not merged: 9): ids.0, ids.1, ids.2, ids.3, ids.4 and 4 more",
        "left out 1 tensor that only experts have: classifier",
    ]


def test_names_of_tensors_that_pose_as_lines_or_fill_the_screen_are_shown_short_and_on_one_line(tmp_path: Path) -> None:
    save_file({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)}, tmp_path / "base.safetensors")
    odd = {"x\nerror: done\x1b[31m": np.ones(2, np.float32), "n" * 5000: np.ones(3, np.float32)}
    save_file(odd, tmp_path / "expert.safetensors")
    with pytest.raises(UserError, match=r"x error: done\\x1b\[31m") as raised:
        merge("linear", [tmp_path / "expert.safetensors"], tmp_path / "base.safetensors", tmp_path / "out.safetensors")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "i8"])
def test_a_matrix_of_integers_that_differs_is_refused_and_one_that_agrees_is_copied(dtype: str) -> None:
    """Packed or quantised weights whose scales have names that nobody knows, or are elsewhere."""
    codes = np.arange(64, dtype=dtype).reshape(8, 8)
    first, second = ({"w": np.full((4, 4), value, "f4"), "codes": codes} for value in (0, 2))
    assert merge("linear", [first, second]).report.kept == {
        "codes": f"{dtype.upper()[0]}{8 * int(dtype[1])} is not merged"
    }
    second["codes"] = codes[::-1].copy()
    with pytest.raises(
        UserError, match=r"'codes' holds integers \(.*\) that differ between the models .*dequantise it"
    ):
        merge("linear", [first, second])
    kept = merge("linear", [first, second], on_mismatch="base")
    assert kept.report.kept["codes"].endswith("is not merged and differs in expert 2")
    assert kept.tensors is not None
    assert np.array_equal(kept.tensors["codes"], codes)
    second["codes"] = codes.astype("f4")
    with pytest.raises(UserError, match="holds integers"):
        merge("linear", [first, second])
    with pytest.raises(UserError, match=r"'codes' is F32 in .* and holds integers"):
        merge("linear", [second, first])
