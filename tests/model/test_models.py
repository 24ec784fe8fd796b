"""The model of a timeline: configurations, base weights, preprocessing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tasks.errors import UserError
from tasks.model import checkpoints, models
from tasks.params import Base, BaseTraining
from tests.train.project import CONFIG


def base(model: str, pretrained: str = "weights.safetensors") -> Base:
    if pretrained == "train":
        return Base(model=model, pretrained=pretrained, train=BaseTraining(steps=1), pretraining=["folder:x"])
    return Base(model=model, pretrained=pretrained)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A project folder with the configuration of a tiny model, resolved into ``tmp_path/model``."""
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG))
    models.resolve(base("tiny.json", "train"), tmp_path, tmp_path / "model")
    return tmp_path


@pytest.fixture
def weights(tiny: Path) -> dict[str, torch.Tensor]:
    return models.build(tiny / "model").state_dict()


def test_importing_the_module_imports_neither_torch_nor_open_clip() -> None:
    code = "import sys, tasks.model.models; sys.exit(bool({'torch', 'open_clip', 'torchvision'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_demo_model_is_the_small_one_it_is_meant_to_be() -> None:
    folder = Path(__file__).parents[2]
    model = models._construct(json.loads((folder / "icons-clip.json").read_text()), "icons-clip", "meta")
    assert sum(p.numel() for p in model.parameters()) == 7_576_321
    assert (model.context_length, model.visual.image_size) == (16, (32, 32))


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-B-16-SigLIP", "convnext_base"])
def test_registered_models_resolve_with_nothing_left_to_download(name: str, tmp_path: Path) -> None:
    models.resolve(base(name, "train"), tmp_path, tmp_path)
    config = json.loads((tmp_path / "model.json").read_text())["model_cfg"]
    assert not config["vision_cfg"].get("timm_model_pretrained", False)
    assert config["text_cfg"]["context_length"] in (64, 77)
    assert models.preprocess(tmp_path).image_size == 224


def test_a_tag_brings_its_preprocessing_and_activation(tmp_path: Path) -> None:
    models.resolve(base("ViT-B-16-SigLIP", "webli"), tmp_path, tmp_path / "siglip")
    assert models.preprocess(tmp_path / "siglip").mean == (0.5, 0.5, 0.5)
    models.resolve(base("ViT-B-32", "openai"), tmp_path, tmp_path / "openai")
    assert json.loads((tmp_path / "openai/model.json").read_text())["model_cfg"]["quick_gelu"] is True


def test_resolving_twice_gives_the_same_bytes(tiny: Path) -> None:
    models.resolve(base("tiny.json", "train"), tiny, tiny / "again")
    for name in ("model.json", "preprocess.json"):
        assert (tiny / "again" / name).read_bytes() == (tiny / "model" / name).read_bytes()


@pytest.mark.parametrize(
    ("model", "pretrained", "says"),
    [
        ("ViT-B32", "train", "near matches: ViT-B-32"),
        ("ViT-B-32", "laion2b_s34b_b79", "near matches: laion2b_s34b_b79k"),
        ("absent.json", "train", "no such file"),
        ("broken.json", "train", "not a JSON file"),
        ("bare.json", "train", "lacks vision_cfg, text_cfg"),
        ("typo.json", "train", "cannot build 'typo.json'.*widht"),
        ("wide.json", "train", "only square images"),
        ("coca_ViT-B-32", "train", "CoCa"),
    ],
)
def test_bad_models_are_refused(model: str, pretrained: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "bare.json").write_text('{"embed_dim": 4}')
    vision = CONFIG["vision_cfg"]
    (tmp_path / "typo.json").write_text(json.dumps({**CONFIG, "vision_cfg": {**vision, "widht": 8}}))
    (tmp_path / "wide.json").write_text(json.dumps({**CONFIG, "vision_cfg": {**vision, "image_size": [16, 32]}}))
    with pytest.raises(UserError, match=says):
        models.resolve(base(model, pretrained), tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_base_weights_from_any_of_their_forms_are_the_same(tiny: Path, weights: dict[str, torch.Tensor]) -> None:
    doubled = {name: tensor.double() for name, tensor in weights.items()}
    save_file({**doubled, "logit_scale": doubled["logit_scale"].reshape(1)}, tiny / "a.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in weights.items()}}, tiny / "b.pt")
    torch.save(weights, tiny / "c.pt")
    for name in ("a.safetensors", "b.pt", "c.pt"):
        models.fetch_base(base("tiny.json", name), tiny, tiny / "base")
        found = checkpoints.load(tiny / "base/base.safetensors")
        assert found.keys() == weights.keys()
        assert all(t.dtype == torch.float32 and torch.equal(t, weights[n]) for n, t in found.items())


def spoil(weights: dict[str, torch.Tensor], path: Path, how: str) -> None:
    """Write a checkpoint that is wrong in one way."""
    spoilt = {name: tensor.clone() for name, tensor in weights.items()}
    if how == "nan":
        spoilt["visual.conv1.weight"][0, 0, 0, 0] = float("nan")
    elif how == "missing":
        del spoilt["visual.proj"]
    elif how == "extra":
        spoilt["visual.extra"] = torch.zeros(1)
    elif how == "shape":
        spoilt["visual.proj"] = torch.zeros(3, 3)
    elif how == "fp8":
        spoilt = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in spoilt.items()}
    if path.suffix == ".pt":
        torch.save({"weights": print} if how == "code" else spoilt, path)
    else:
        save_file(spoilt, path)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("file", "how", "says"),
    [
        ("w.safetensors", "nan", "'visual.conv1.weight' holds values that are not finite"),
        ("w.safetensors", "missing", "lacks the tensor 'visual.proj'"),
        ("w.safetensors", "extra", "has a tensor 'visual.extra'"),
        ("w.safetensors", "shape", r"'visual.proj' has shape \[3, 3\], the model has \[16, 16\]"),
        ("w.safetensors", "fp8", "'.*' is F8_E4M3, too coarse to be trained or merged"),
        ("w.pt", "fp8", "'.*' is F8_E4M3, too coarse to be trained or merged"),
        ("w.safetensors", "truncated", "perhaps truncated"),
        ("w.pt", "truncated", "perhaps truncated"),
        ("w.pt", "code", "not a file of plain weights"),
    ],
)
def test_bad_base_weights_are_refused(
    file: str, how: str, says: str, tiny: Path, weights: dict[str, torch.Tensor]
) -> None:
    spoil(weights, tiny / file, how)
    with pytest.raises(UserError, match=says) as caught:
        models.fetch_base(base("tiny.json", file), tiny, tiny / "base")
    assert "\n" not in str(caught.value)
    assert not (tiny / "base").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize(
    ("kind", "says"),
    [("pipe", "not a regular file"), ("folder", "not a regular file"), ("zero", "not a regular file"),
     ("text", "a text file, not a "), ("pointer", "a git-lfs pointer"), ("empty", "perhaps truncated")],
)  # fmt: skip
def test_what_is_no_checkpoint_is_called_what_it_is(tiny: Path, name: str, kind: str, says: str) -> None:
    path = tiny / name
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "zero":
            path.symlink_to("/dev/zero")
        case _:
            texts = {
                "text": "hello",
                "pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
                "empty": "",
            }
            path.write_text(texts[kind])
    with pytest.raises(UserError, match=rf"{name}: .*{says}"):
        models.read_checkpoint(path)


def test_a_missing_checkpoint_is_named(tiny: Path) -> None:
    for name in ("absent.pt", "absent.safetensors"):
        with pytest.raises(UserError, match=name):
            models.fetch_base(base("tiny.json", name), tiny, tiny / "base")


def test_a_torchscript_archive_is_named_with_the_way_out(tiny: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tiny / "jit.pt")
    for read in (lambda: models.read_checkpoint(tiny / "jit.pt"), lambda: models.fetch_base(
        base("tiny.json", "jit.pt"), tiny, tiny / "base"
    )):  # fmt: skip
        with pytest.raises(UserError, match=r"jit.pt: a TorchScript archive .* open_clip's tag 'openai'"):
            read()


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens on the discard port
    monkeypatch.setenv("HOME", str(tmp_path))
    tag = {"url": "http://models.invalid/weights.pt"}
    with pytest.raises(UserError, match=r"could not be downloaded .*; name a checkpoint file") as caught:
        models._download(base("ViT-B-32", "openai"), tag, torch.nn.Linear(1, 1))
    assert "\n" not in str(caught.value)


def test_normalize_is_open_clips_standardization(tiny: Path) -> None:
    how = models.preprocess(tiny / "model")
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    expected = (images / 255 - np.array(how.mean)) / np.array(how.std)
    got = models.normalize(images, how, torch.device("cpu"))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_tokenizer_has_the_models_context(tiny: Path) -> None:
    tokens = models.tokenizer(tiny / "model")(["a red square", "word " * 40])
    assert tokens.shape == (2, 12)
    assert tokens.dtype == torch.int64


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: torch.zeros(1).expand(1 << 35), "is an expanded view"),
        (lambda: torch.eye(2).to_sparse(), "is sparse, nested, quantized or without values"),
        (lambda: torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8), "is sparse, nested, quantized"),
        (lambda: torch.empty(1 << 40, device="meta"), "is sparse, nested, quantized or without values"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(1)]), "is sparse, nested, quantized"),
    ],
)
def test_tensors_of_torch_files_are_dense_and_stored_in_full(
    tmp_path: Path, made: Callable[[], Any], words: str
) -> None:
    torch.save({"w": made()}, tmp_path / "m.pt")
    with pytest.raises(UserError, match=words):
        models.read_checkpoint(tmp_path / "m.pt")


def test_names_of_tensors_are_text(tmp_path: Path) -> None:
    torch.save({3: torch.ones(1)}, tmp_path / "m.pt")
    with pytest.raises(UserError, match="the name of a tensor is 3, which is not text"):
        models.read_checkpoint(tmp_path / "m.pt")


def test_a_compressed_torch_file_is_refused_unread(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, tmp_path / "m.pt")
    with (
        zipfile.ZipFile(tmp_path / "m.pt") as old,
        zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match="its members are compressed or overlap"):
        models.read_checkpoint(tmp_path / "c.pt")


def test_damaged_torch_files_are_refused_whatever_torch_raises(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "m.pt").read_bytes()
    for at in range(0, len(content), 3):
        (tmp_path / "m.pt").write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        try:
            weights = models.read_checkpoint(tmp_path / "m.pt")
        except UserError:
            continue
        assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values())
