"""Converted models load in the other library, and compute the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionModel

from tasks.convert import convert
from tasks.errors import UserError
from tasks.model.settings import mlp_ratio
from tests.model.test_translated import clip_config


def words() -> Any:
    """A tiny model with CLIP's own vocabulary."""
    config = clip_config()
    config.text_config.vocab_size, config.text_config.max_position_embeddings = 49408, 16
    config.text_config.bos_token_id, config.text_config.eos_token_id = 49406, 49407
    return config


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(words()).save_pretrained(folder)
    return folder


def logits(model: CLIPModel, texts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=texts, pixel_values=images).logits_per_image


def test_a_transformers_model_loads_in_open_clip_and_goes_back_with_the_same_bits(saved: Path, tmp_path: Path) -> None:
    assert convert(saved, "open_clip", tmp_path / "oc").tensors > 40
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'oc'}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'oc'}")
    texts, images = tokenize(["a dog", "two cats, asleep"]), torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        ours = model.eval().get_logits(images, texts)[0]
    torch.testing.assert_close(ours, logits(CLIPModel.from_pretrained(saved), texts, images), rtol=1e-5, atol=1e-5)
    assert "16" in str(preprocess)

    convert(tmp_path / "oc", "transformers", tmp_path / "hf")
    assert not [path.name for path in (tmp_path / "hf").iterdir() if path.name.startswith(".")]
    before, after = load_file(saved / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(
        logits(CLIPModel.from_pretrained(tmp_path / "hf"), texts, images), ours, rtol=1e-5, atol=1e-5
    )


def test_the_tokenizer_gives_open_clips_tokens(saved: Path, tmp_path: Path) -> None:
    convert(saved, "transformers", tmp_path / "hf")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "hf")
    ours = open_clip.SimpleTokenizer(context_length=16)
    for text in ("a dog", "Two cats, ASLEEP!", "naïve café 2024", "emoji 😀 it's"):
        length = int(ours(text)[0].argmax()) + 1
        assert tokenizer(text)["input_ids"] == ours(text)[0][:length].tolist()


def test_half_precision_is_rounded_and_said_by_dtype(saved: Path, tmp_path: Path) -> None:
    convert(saved, "transformers", tmp_path / "hf", dtype="bfloat16")
    given, wanted = load_file(tmp_path / "hf" / "model.safetensors"), load_file(saved / "model.safetensors")
    assert all(torch.equal(given[name], wanted[name].to(torch.bfloat16)) for name in wanted)
    with pytest.raises(UserError, match="unknown dtype 'int8'; there are float32, bfloat16"):
        convert(saved, "transformers", tmp_path / "other", dtype="int8")


def test_a_vision_model_gets_its_text_tower_from_the_base(saved: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    CLIPVisionModel(words().vision_config).save_pretrained(tmp_path / "vision")
    with pytest.raises(UserError, match=r"a vision model alone; give the model that its text tower is from \(--base\)"):
        convert(tmp_path / "vision", "open_clip", tmp_path / "oc")
    done = convert(tmp_path / "vision", "transformers", tmp_path / "hf", base=saved)
    given, base = load_file(tmp_path / "hf" / "model.safetensors"), load_file(saved / "model.safetensors")
    vision = load_file(tmp_path / "vision" / "model.safetensors")
    assert all(torch.equal(given[f"vision_model.{name}"], tensor) for name, tensor in vision.items())
    assert all(torch.equal(given[name], base[name]) for name in base if not name.startswith("vision_model."))
    assert any("tensors are the base's" in note for note in done.notes)


def test_an_adapter_becomes_a_model(saved: Path, tmp_path: Path) -> None:
    model = get_peft_model(CLIPModel.from_pretrained(saved), LoraConfig(r=2, target_modules=["q_proj"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1
    model.save_pretrained(tmp_path / "adapter")
    convert(tmp_path / "adapter", "transformers", tmp_path / "hf", base=saved)
    texts, images = torch.randint(0, 9, (2, 16)), torch.randn(2, 3, 16, 16)
    texts[:, 9] = 49407
    with torch.no_grad():
        wanted = model.eval()(input_ids=texts, pixel_values=images).logits_per_image
    torch.testing.assert_close(
        logits(CLIPModel.from_pretrained(tmp_path / "hf"), texts, images), wanted, rtol=1e-5, atol=1e-5
    )


def test_shards_are_read(saved: Path, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(saved).save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    convert(tmp_path / "sharded", "transformers", tmp_path / "hf")
    given, wanted = load_file(tmp_path / "hf" / "model.safetensors"), load_file(saved / "model.safetensors")
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)


def test_memory_is_flat_whatever_the_size_of_the_shards(tmp_path: Path) -> None:
    text = {"hidden_size": 768, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 12}
    vision = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    made = CLIPModel(CLIPConfig(text_config=text, vision_config=vision))
    made.save_pretrained(tmp_path / "sharded", max_shard_size="20MB")
    weights = list((tmp_path / "sharded").glob("*.safetensors"))
    assert len(weights) > 1
    assert sum(path.stat().st_size for path in weights) > 150e6
    convert(tmp_path / "sharded", "open_clip", tmp_path / "first")  # so that all is imported
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    convert(tmp_path / "sharded", "open_clip", tmp_path / "second")
    assert high_water() - before < 50e6


def high_water() -> int:
    """The largest resident set since it was cleared, in bytes."""
    return next(int(one.split()[1]) for one in Path("/proc/self/status").open() if one.startswith("VmHWM")) * 1024


def test_what_is_wrong_is_named_and_nothing_is_left(saved: Path, tmp_path: Path) -> None:
    lone = tmp_path / "lone" / "m.safetensors"
    lone.parent.mkdir()
    save_file(load_file(saved / "model.safetensors"), lone)
    with pytest.raises(UserError, match=r"no open_clip_config\.json or config\.json beside it says what model this is"):
        convert(lone, "open_clip", tmp_path / "out")
    convert(lone, "open_clip", tmp_path / "with-base", base=saved)  # which has a configuration

    broken = tmp_path / "broken"
    broken.mkdir()
    weights = load_file(saved / "model.safetensors")
    del weights["vision_model.pre_layrnorm.weight"]
    save_file(weights, broken / "model.safetensors")
    (broken / "config.json").write_text((saved / "config.json").read_text())
    with pytest.raises(UserError, match=r"lacks the tensor 'visual.ln_pre.weight' that its configuration asks for"):
        convert(broken, "open_clip", tmp_path / "out")

    coarse = {name: t.to(torch.float8_e4m3fn) for name, t in load_file(saved / "model.safetensors").items()}
    save_file(coarse, lone)
    with pytest.raises(UserError, match=r"m\.safetensors: tensor '.*' is F8_E4M3, too coarse"):
        convert(lone, "open_clip", tmp_path / "out", base=saved)

    config = json.loads((saved / "config.json").read_text())
    config["model_type"] = "blip"
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="models of type 'blip' are not converted"):
        convert(broken, "open_clip", tmp_path / "out")
    (broken / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not a readable configuration"):
        convert(broken, "open_clip", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "lone", "with-base"]

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists; choose a new folder"):
        convert(saved, "open_clip", tmp_path / "full")


@pytest.mark.parametrize(
    ("file", "key", "value", "words"),
    [
        ("config.json", "vision_config", 3, "config.json: vision_config: "),
        ("config.json", "text_config.hidden_size", [], "config.json: text_config.hidden_size: "),
        ("config.json", "text_config.hidden_size", 0, "config.json: text_config.hidden_size: "),
        ("config.json", "vision_config.hidden_act", {}, "config.json: vision_config.hidden_act: "),
        ("config.json", "vision_config.num_hidden_layers", 10**9, "config.json: vision_config.num_hidden_layers: "),
        ("config.json", "vision_config.num_attention_heads", 1 << 20, "is no multiple of 1048576 heads"),
        ("config.json", "projection_dim", "x" * 5000, "config.json: projection_dim: "),
        ("preprocessor_config.json", "image_mean", 0.5, "preprocessor_config.json: image_mean: "),
    ],
)
def test_settings_that_no_model_has_are_named(
    saved: Path, tmp_path: Path, file: str, key: str, value: Any, words: str
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    *sections, last = key.split(".")
    place = content
    for section in sections:
        place = place[section]
    place[last] = value
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        convert(folder, "transformers", tmp_path / "out")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("model_cfg",), [], "model_cfg"),
        (("model_cfg", "text_cfg"), 10**30, "model_cfg.text_cfg"),
        (("model_cfg", "vision_cfg"), None, "model_cfg.vision_cfg"),
        (("model_cfg", "vision_cfg", "layers"), [], "model_cfg.vision_cfg.layers"),
        (("model_cfg", "text_cfg", "layers"), 0, "model_cfg.text_cfg.layers"),
        (("model_cfg", "text_cfg", "width"), 10**9, "model_cfg.text_cfg.width"),
        (("model_cfg", "text_cfg", "hf_model_name"), "somebody/model", "model_cfg.text_cfg.hf_model_name"),
        (("model_cfg", "vision_cfg", "timm_model_name"), "hf-hub:a/b", "model_cfg.vision_cfg.timm_model_name"),
        (("preprocess_cfg",), "\x1b]0;x\x07", "preprocess_cfg"),
        (("preprocess_cfg", "mean"), -1, "preprocess_cfg.mean"),
        (("preprocess_cfg", "interpolation"), "n" * 5000, "preprocess_cfg.interpolation"),
    ],
)
def test_an_open_clip_configuration_that_makes_no_sense_is_named(
    saved: Path, tmp_path: Path, keys: tuple[str, ...], value: Any, named: str
) -> None:
    convert(saved, "open_clip", tmp_path / "oc")
    path = tmp_path / "oc" / "open_clip_config.json"
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"open_clip_config\.json: {named}") as raised:
        convert(tmp_path / "oc", "transformers", tmp_path / "hf")
    assert len(str(raised.value)) < 500
    assert not (tmp_path / "hf").exists()


def test_what_an_open_clip_configuration_leaves_out_is_open_clips_default(saved: Path, tmp_path: Path) -> None:
    convert(saved, "open_clip", tmp_path / "oc")
    path = tmp_path / "oc" / "open_clip_config.json"
    content = json.loads(path.read_text())
    del content["model_cfg"]["text_cfg"]["layers"], content["preprocess_cfg"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"lacks the tensor 'transformer\.resblocks\.1\d?\."):
        convert(tmp_path / "oc", "transformers", tmp_path / "hf")


def test_a_hidden_layer_keeps_its_size_whatever_the_ratio_is_rounded_to() -> None:
    sizes = [(15, 11), (53, 19), (4304, 1152)]  # of the first two, width · (inner / width) is less than inner
    assert [int(width * mlp_ratio(inner, width)) for inner, width in sizes] == [inner for inner, _ in sizes]


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_an_error_of_the_model_itself_is_not_covered_by_its_base(saved: Path, tmp_path: Path, file: str) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    if file == "config.json":
        config = json.loads((folder / file).read_text())
        config["vision_config"]["hidden_act"] = "relu"
        (folder / file).write_text(json.dumps(config))
    else:
        (folder / file).write_bytes((folder / file).read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{file}: "):
        convert(folder, "open_clip", tmp_path / "out", base=saved)


def test_no_file_from_outside_a_models_folder_comes_along(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "private").write_text("secret")
    (tmp_path / "model/vocab.json").symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match=r"vocab\.json: is a link to .*/private, outside its folder"):
        convert(tmp_path / "model", "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_the_hubs_cache_is_links_to_its_blobs(saved: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "cache/snapshots/0123", tmp_path / "cache/blobs"
    shutil.copytree(saved, blobs)
    (blobs / "words").write_text("{}")
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    (snapshot / "vocab.json").symlink_to("../../blobs/words")
    convert(snapshot, "open_clip", tmp_path / "out")
    assert (tmp_path / "out/vocab.json").read_text() == "{}"
