"""A model of transformers keeps the tokenizer that it was trained with, wherever it goes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPTextConfig

from tasks.convert import convert, merge_into
from tasks.errors import UserError
from tasks.model import models, tokenizers, vocabularies
from tasks.params import Base
from tests import hub
from tests import tokenizers as made
from tests.model.test_translated import clip_config

TEXTS = ["a red square", "red", "a photo of a green circle . a photo of a blue square .", "", "purple A"]
CONTEXT = 12


def config(words: int, end: int) -> CLIPConfig:
    one = clip_config()
    text = CLIPTextConfig(
        **{**one.text_config.to_dict(), "vocab_size": words, "eos_token_id": end, "bos_token_id": None}
    )
    return CLIPConfig(text_config=text.to_dict(), vision_config=one.vision_config.to_dict(), projection_dim=24)


def save(folder: Path, words: int, end: int, tokenizer: Callable[[Path], object] | None = made.save) -> Path:
    """A model of transformers with a tokenizer."""
    torch.manual_seed(5)
    CLIPModel(config(words, end)).save_pretrained(folder)
    if tokenizer:
        tokenizer(folder)
    return folder


def of_transformers(folder: Path, images: torch.Tensor, texts: list[str]) -> torch.Tensor:
    """What transformers computes of images and texts by itself."""
    given = AutoTokenizer.from_pretrained(folder)(
        texts, return_tensors="pt", padding=True, truncation=True, max_length=CONTEXT
    )
    with torch.no_grad():
        return CLIPModel.from_pretrained(folder).eval()(**given, pixel_values=images).logits_per_image


def of_open_clip(folder: Path, images: torch.Tensor, texts: list[str]) -> torch.Tensor:
    """What open_clip computes with a folder."""
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    with torch.no_grad():
        return model.get_logits(images, open_clip.get_tokenizer(f"local-dir:{folder}")(texts))[0]


def as_base(address: str, project: Path, into: Path) -> Path:
    given = models.pinned(Base(model=address))
    models.check(given, project)
    models.resolve(given, project, into / "model")
    models.fetch_tokenizer(given, project, into / "model")
    models.fetch_base(given, project, into)
    return into


def of_ours(folder: Path, images: torch.Tensor, texts: list[str]) -> torch.Tensor:
    """What a timeline computes with a base, and with the part of the context that matters."""
    model = models.build(folder / "model").eval()  # type: ignore[attr-defined]
    models.load_weights(model, load_file(folder / "base.safetensors"), folder)
    tokens = models.tokenizer(folder / "model")(texts)
    with torch.no_grad():
        features = models.text_features(model, tokens)
        torch.testing.assert_close(features, model.encode_text(tokens, normalize=True), rtol=1e-5, atol=1e-5)
        return model.logit_scale.exp() * model.encode_image(images, normalize=True) @ features.T


CASES: list[tuple[int, int, Callable[[Path], object]]] = [
    (13, 12, made.save),
    (13, 2, made.save),  # read as the largest, as in the first configurations of transformers
    (20, 12, made.save),  # a vocabulary that was padded
    (10, 4, made.save_pieces),  # the end of a text is not the largest number, and fills texts up
    (16, 9, lambda folder: made.save_pieces(folder, 9)),
]


@pytest.mark.parametrize(("words", "end", "tokenizer"), CASES)
def test_a_base_reads_texts_as_transformers_does(
    tmp_path: Path, words: int, end: int, tokenizer: Callable[[Path], object]
) -> None:
    folder, images = save(tmp_path / "theirs", words, end, tokenizer), torch.randn(3, 3, 16, 16)
    wanted = of_transformers(folder, images, TEXTS)
    assert wanted.std(dim=1).min() > 1e-3  # texts are told apart
    ours = of_ours(as_base("local-dir:theirs", tmp_path, tmp_path / "base"), images, TEXTS)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("words", "end", "tokenizer"), CASES)
def test_converted_there_and_back_it_reads_the_same(
    tmp_path: Path, words: int, end: int, tokenizer: Callable[[Path], object]
) -> None:
    folder, images = save(tmp_path / "theirs", words, end, tokenizer), torch.randn(3, 3, 16, 16)
    wanted = of_transformers(folder, images, TEXTS)
    convert(folder, "open_clip", tmp_path / "oc")
    torch.testing.assert_close(of_open_clip(tmp_path / "oc", images, TEXTS), wanted, rtol=1e-5, atol=1e-5)
    convert(tmp_path / "oc", "transformers", tmp_path / "hf")
    torch.testing.assert_close(of_transformers(tmp_path / "hf", images, TEXTS), wanted, rtol=1e-5, atol=1e-5)
    again = json.loads((tmp_path / "hf/config.json").read_text())["text_config"]
    assert (again["vocab_size"], again["eos_token_id"]) == (words, end)


def test_a_repository_of_a_hub_brings_its_tokenizer(tmp_path: Path) -> None:
    folder, images = save(tmp_path / "theirs", 10, 4, made.save_pieces), torch.randn(3, 3, 16, 16)
    with hub.serving() as server:
        server.commit("org/theirs", folder)
        with server.used(tmp_path / "home"):
            base = as_base("hf-hub:org/theirs", tmp_path, tmp_path / "base")
    assert "tokenizer.json" in {path.name for path in (base / "source").iterdir()}
    wanted = of_transformers(folder, images, TEXTS)
    torch.testing.assert_close(of_ours(base, images, TEXTS), wanted, rtol=1e-5, atol=1e-5)


def test_a_merge_into_a_folder_brings_the_tokenizer(tmp_path: Path) -> None:
    folder, images = save(tmp_path / "base", 10, 4, made.save_pieces), torch.randn(3, 3, 16, 16)
    shutil.copytree(folder, tmp_path / "expert")
    merge_into(tmp_path / "out", technique="linear", base=folder, experts=[tmp_path / "expert"], weights=[0.5])
    wanted = of_transformers(folder, images, TEXTS)
    torch.testing.assert_close(of_transformers(tmp_path / "out", images, TEXTS), wanted, rtol=1e-5, atol=1e-5)


def clip_files(folder: Path, **changes: Any) -> Path:
    tokenizers.write_clip(folder, CONTEXT)
    if changes:
        AutoTokenizer.from_pretrained(folder, **changes).save_pretrained(folder)
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()
    return folder


def test_clips_own_tokenizer_is_known_in_each_form(tmp_path: Path) -> None:
    for name, changes in (("two", {}), ("one", {"model_max_length": 12})):
        (folder := tmp_path / name).mkdir()
        assert vocabularies.is_clip(clip_files(folder, **changes))
        assert (folder / "tokenizer.json").exists() == (name == "one")
        assert tokenizers.of_transformers(folder, 49408, 49407) == {}
    content = json.loads((tmp_path / "one/tokenizer.json").read_text())
    content["normalizer"]["normalizers"].pop()  # keeps capital letters
    (tmp_path / "one/tokenizer.json").write_text(json.dumps(content))
    assert not vocabularies.is_clip(tmp_path / "one")
    lines = (tmp_path / "two/merges.txt").read_text().splitlines()
    lines[5], lines[6] = lines[6], lines[5]
    (tmp_path / "two/merges.txt").write_text("\n".join(lines))
    assert not vocabularies.is_clip(tmp_path / "two")
    assert tokenizers.of_transformers(tmp_path / "two", 49408, 49407)["hf_tokenizer_name"] == tokenizers.BESIDE


def edited(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_tokenizer_that_is_not_the_models_is_one_line(tmp_path: Path) -> None:
    cases: list[tuple[str, Path, str]] = [
        (
            "none",
            save(tmp_path / "none", 13, 12, None),
            r"no tokenizer beside the model, .* is not CLIP's \(vocab_size 13\)",
        ),
        ("large", save(tmp_path / "large", 12, 11), r"number 13 tokens, and the model has vocab_size 12; put"),
        ("end", save(tmp_path / "end", 13, 7), r"does not end a text with the token 7, .*; it gives 2, 12, 0,"),
        ("clip", save(tmp_path / "clip", 49408, 7, None), r"eos_token_id 7 is not the end of a text in CLIP's vocab"),
        ("left", save(tmp_path / "left", 13, 12), r"pads on the left"),
        ("fill", save(tmp_path / "fill", 13, 12), r"has no pad_token"),
        ("torn", save(tmp_path / "torn", 13, 12), r"tokenizer\.json: not a readable tokenizer"),
        ("kinds", save(tmp_path / "kinds", 13, 12), r"cannot be had"),
    ]
    edited(tmp_path / "left", "tokenizer_config.json", padding_side="left")
    settings = tmp_path / "fill/tokenizer_config.json"
    settings.write_text(json.dumps({k: v for k, v in json.loads(settings.read_text()).items() if k != "pad_token"}))
    (tmp_path / "torn/tokenizer.json").write_text("{")
    edited(tmp_path / "kinds", "tokenizer.json", model={"vocab": [3, [], [[1]]], "merges": 3}, added_tokens=[2, {}])
    for name, folder, words in cases:
        with pytest.raises(UserError, match=words) as error:
            as_base(f"local-dir:{folder.name}", tmp_path, tmp_path / "base" / name)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "base" / name / "base.safetensors").exists()


def test_a_model_without_its_tokenizer_never_gets_open_clips(tmp_path: Path) -> None:
    save(tmp_path / "theirs", 13, 12, None)
    (note,) = convert(tmp_path / "theirs", "open_clip", tmp_path / "oc").notes
    assert "no tokenizer: none is beside the model" in note
    with pytest.raises(ValueError, match="backend tokenizer"):
        open_clip.get_tokenizer(f"local-dir:{tmp_path / 'oc'}")


def test_numbers_of_tokens_are_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\n")
    tokens = {number: {"content": f"t{number}"} for number in ("7", "²", "x", "9" * 5000)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": tokens}))
    assert vocabularies.of(tmp_path) == {"a": 0, "t7": 7}
