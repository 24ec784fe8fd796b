"""A state's model in a folder: open_clip and transformers load it, with its own tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save
from transformers import AutoTokenizer, CLIPModel, CLIPTokenizer

from tasks import layout
from tasks.errors import UserError
from tasks.model import configurations, models
from tasks.model import tokenizers as kept
from tasks.record import delivery
from tasks.record.delivery import Form
from tasks.record.state import State
from tasks.storage import dvc_config
from tasks.storage.dvc import Dvc
from tasks.storage.dvc_config import Remote
from tests import tokenizers
from tests.project import MODEL
from tests.record import made_up

MODEL_FOLDER = f"{layout.HISTORY}/model"


def model(folder: Path, **text: Any) -> dict[str, bytes]:
    """What a state holds of a tiny model with random weights: path → bytes."""
    config = {**MODEL, "text_cfg": {**MODEL["text_cfg"], **text}}  # type: ignore[dict-item]
    (folder / "tiny.json").write_text(json.dumps(config))
    base = made_up.PARAMS["base"]
    given = models.Base.model_validate(base)
    models.resolve(given, folder, folder / "model")
    models.fetch_tokenizer(given, folder, folder / "model")
    torch.manual_seed(0)
    weights = models.build(folder / "model").state_dict()
    files = [path for path in (folder / "model").rglob("*") if path.is_file()]
    content = {f"{MODEL_FOLDER}/{path.relative_to(folder / 'model')}": path.read_bytes() for path in files}
    return {**content, layout.DEPLOYED: save({name: tensor.contiguous() for name, tensor in weights.items()})}


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory, dvc: Dvc) -> tuple[State, State]:
    """A state whose model has open_clip's tokenizer, and one whose model has another."""
    folder = tmp_path_factory.mktemp("delivery")
    remote = Remote("there", str(folder / "remote"))
    project = made_up.project(folder / "project", remote)
    tokenizers.save(folder / "words")
    plain, own = folder / "plain", folder / "own"
    for home in (plain, own):
        home.mkdir()
    first = made_up.record(project, remote, dvc, instead=model(plain))
    size = {"vocab_size": len(tokenizers.WORDS), "hf_tokenizer_name": str(folder / "words")}
    return first, made_up.record(project, remote, dvc, instead=model(own, **size))


def test_open_clip_finds_the_models_own_tokenizer(states: tuple[State, State], tmp_path: Path) -> None:
    done = delivery.deliver(states[1], tmp_path)
    assert not done.notes
    tokenize = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    assert tokenize(["a red square"]).tolist() == [[2, 5, 9, 12] + [0] * 8]
    net = open_clip.create_model(f"local-dir:{tmp_path}")
    assert net.encode_text(tokenize(["a red square"])).shape == (1, 16)
    noted = json.loads((tmp_path / delivery.NOTE).read_text())
    assert {*noted["files"], delivery.NOTE} == {path.name for path in tmp_path.iterdir()}
    assert noted["weights"]["md5"] == states[1].entries[layout.DEPLOYED].md5


def test_transformers_computes_the_same(states: tuple[State, State], tmp_path: Path) -> None:
    delivery.deliver(states[0], tmp_path / "oc")
    delivery.deliver(states[0], tmp_path / "hf", Form("transformers"))
    ours, theirs = open_clip.create_model(f"local-dir:{tmp_path / 'oc'}"), CLIPModel.from_pretrained(tmp_path / "hf")
    texts = ["a red square", "blue"]
    tokens, images = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'oc'}")(texts), torch.rand(2, 3, 16, 16)
    their_tokens = CLIPTokenizer.from_pretrained(tmp_path / "hf")(texts, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            theirs.eval()(pixel_values=images, **their_tokens).logits_per_image,
            ours.eval().get_logits(images, tokens)[0],
            rtol=1e-5,
            atol=1e-5,
        )


def test_a_folder_that_changes_its_form_keeps_no_other_weights(states: tuple[State, State], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    state = states[0]
    for form, weights in (
        (Form("transformers", "bfloat16"), "model.safetensors"),
        (Form("open_clip", "float16"), delivery.WEIGHTS),
        (Form(), delivery.WEIGHTS),
    ):
        assert not delivery.is_there(state, tmp_path, form)
        delivery.deliver(state, tmp_path, form)
        assert delivery.is_there(state, tmp_path, form)
        assert [path.name for path in tmp_path.glob("*.safetensors")] == [weights]
        wanted = {None: torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[form.dtype]
        assert {tensor.dtype for tensor in load_file(tmp_path / weights).values()} == {wanted}
    assert {path.name for path in tmp_path.iterdir()} == {
        "mine.txt", delivery.WEIGHTS, delivery.CONFIG, delivery.NOTE,
    }  # fmt: skip
    assert not delivery.is_there(states[1], tmp_path)
    (tmp_path / delivery.CONFIG).write_text("{}")
    assert not delivery.is_there(state, tmp_path)


def test_transformers_finds_the_models_own_tokenizer(states: tuple[State, State], tmp_path: Path) -> None:
    delivery.deliver(states[1], tmp_path / "oc")
    assert not delivery.deliver(states[1], tmp_path / "hf", Form("transformers")).notes[1:]
    net, tokenize = (
        open_clip.create_model(f"local-dir:{tmp_path / 'oc'}"),
        AutoTokenizer.from_pretrained(tmp_path / "hf"),
    )
    texts, images = ["a red square", "blue"], torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            CLIPModel.from_pretrained(tmp_path / "hf")
            .eval()(pixel_values=images, **tokenize(texts, padding=True, return_tensors="pt"))
            .logits_per_image,
            net.eval().get_logits(images, open_clip.get_tokenizer(f"local-dir:{tmp_path / 'oc'}")(texts))[0],
            rtol=1e-5,
            atol=1e-5,
        )


def test_a_model_that_the_library_does_not_have_leaves_nothing(dvc: Dvc, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    remote = Remote("there", str(tmp_path / "remote"))
    project = made_up.project(tmp_path / "project", remote)
    state = made_up.record(project, remote, dvc, instead=model(tmp_path / "made", pool_type="last"))
    with pytest.raises(UserError, match=r"transformers' CLIPModel has nothing like text_cfg\.pool_type: 'last'"):
        delivery.deliver(state, tmp_path / "to", Form("transformers"))
    assert not (tmp_path / "to").exists()
    with pytest.raises(UserError, match="unknown dtype 'int8'; there are float32, bfloat16"):
        Form(dtype="int8")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        # open_clip gives these to transformers, which would run the tokenizer's code
        (
            {"hf_tokenizer_name": "org/x", "tokenizer_kwargs": {"trust_remote_code": True}},
            r"tokenizer_kwargs: 'trust_remote_code' is not taken",
        ),
        ({"hf_model_name": "org/x", "hf_model_pretrained": False}, r"text_cfg\.hf_model_name: 'org/x' is no model of"),
    ],
)
def test_a_state_of_somebody_else_has_the_server_run_no_code(
    dvc: Dvc, tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    (tmp_path / "made").mkdir()
    files = model(tmp_path / "made")
    content = json.loads(files[f"{MODEL_FOLDER}/model.json"])
    content["model_cfg"]["text_cfg"] |= settings
    files[f"{MODEL_FOLDER}/model.json"] = json.dumps(content).encode()
    remote = Remote("there", str(tmp_path / "remote"))
    state = made_up.record(made_up.project(tmp_path / "project", remote), remote, dvc, instead=files)
    with pytest.raises(UserError, match=rf"model/model\.json: {words}"):
        delivery.deliver(state, tmp_path / "serving")
    assert not (tmp_path / "serving").exists()


@pytest.mark.parametrize(
    ("tower", "settings", "words"),
    [
        (
            "text_cfg",
            {"hf_model_name": "/tmp/theirs", "hf_model_pretrained": False},
            "hf_model_name: '/tmp/theirs' is no",
        ),
        ("text_cfg", {"hf_model_name": "org/x", "hf_model_pretrained": False}, "hf_model_name: 'org/x' is no model of"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_pretrained: the weights are in the state"),
        ("vision_cfg", {"timm_model_name": "hf-hub:org/x"}, "timm_model_name: 'hf-hub:org/x' is no model of"),
        ("vision_cfg", {"timm_model_name": "local-dir:x"}, "timm_model_name: 'local-dir:x' is no model of"),
        ("vision_cfg", {"timm_model_name": ["vit"]}, "timm_model_name: ['vit'] is no model of"),
        ("vision_cfg", {"timm_model_pretrained": True}, "timm_model_pretrained: the weights are in the state"),
    ],
)
def test_a_configuration_of_somebody_else_has_open_clip_load_nothing_from_elsewhere(
    tower: str, settings: dict[str, object], words: str
) -> None:
    """open_clip gives one name to transformers and one to timm, which take paths and addresses."""
    config: dict[str, Any] = {**MODEL, tower: {**MODEL[tower], **settings}}  # type: ignore[dict-item]
    with pytest.raises(UserError, match=rf"{tower}\.{re.escape(words)}"):
        configurations.require_no_address(config)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP", "roberta-ViT-B-32", "RN50", "convnext_base_w"])
def test_models_of_open_clip_are_delivered(name: str) -> None:
    import open_clip

    config = open_clip.get_model_config(name)
    for tower, key in (("vision_cfg", "timm_model_pretrained"), ("text_cfg", "hf_model_pretrained")):
        config[tower][key] = False  # as a base is recorded
    configurations.require_no_address(config)


def test_a_state_without_its_tokenizer_says_so(states: tuple[State, State], dvc: Dvc, tmp_path: Path) -> None:
    """As they were recorded before tokenizers' files were part of a state."""
    tokenizers.save(tmp_path / "words")
    (tmp_path / "made").mkdir()
    size = {"vocab_size": len(tokenizers.WORDS), "hf_tokenizer_name": str(tmp_path / "words")}
    files = {path: data for path, data in model(tmp_path / "made", **size).items() if f"/{kept.FOLDER}/" not in path}
    project = states[0].project
    state = made_up.record(project, dvc_config.remote(project, "there"), dvc, instead=files)
    done = delivery.deliver(state, tmp_path / "serving")
    assert "was recorded without its tokenizer's files" in done.notes[0]
