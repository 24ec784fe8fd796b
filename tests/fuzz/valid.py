"""Valid inputs of each kind, which `tests.fuzz.inputs` changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPModel

from tasks.convert import convert
from tasks.model import checkpoints, codec, coded, shared
from tasks.params import Named
from tests import miniatures, published, tokenizers
from tests.evaluate import test_headfile as heads
from tests.inbox.test_models import model as small_model
from tests.model.test_translated import clip_config
from tests.project import ROOT


def make(folder: Path) -> None:
    """Write them all into a new folder."""
    torch.manual_seed(0)
    model = CLIPModel(clip_config())
    _save(model, folder / "model", folder / "open_clip", folder / "adapter")
    (folder / "model/preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "resample": 3}')
    _save(small_model(), folder / "small", folder / "small_open_clip", folder / "small_adapter")
    for name, save in (("own-words", tokenizers.save), ("own-pieces", tokenizers.save_pieces)):
        shutil.copytree(folder / "model", folder / name)
        save(folder / name)
    shutil.copytree(folder / "small", folder / "small_words")
    tokenizers.save(folder / "small_words")
    _make_weights(folder)
    (folder / "heads").mkdir()
    for number, kind in enumerate(("gda", "prototype", "linear")):
        data = heads.samples(heads.NAMES[:3], number)
        heads.write(folder / f"heads/{kind}.safetensors", data if number else data.moments(), kind)
    shutil.copytree(ROOT / "streams", folder / "streams")
    _make_sets(folder / "sets")
    _make_fomo(folder / "fomo")


def _save(model: CLIPModel, plain: Path, open_clip: Path, adapter: Path) -> None:
    model.save_pretrained(plain)
    convert(plain, "open_clip", open_clip)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(adapter))


def _make_weights(folder: Path) -> None:
    """Experts of the codecs, and models with statistics."""
    (folder / "coded").mkdir()
    base = {"big": torch.randn(300, 10), "half": torch.randn(7, 3).to(torch.bfloat16), "ids": torch.arange(9)}
    checkpoints.save(folder / "coded/base.safetensors", base)
    expert = {
        name: t + 0.01 * torch.randn(t.shape).to(t.dtype) if t.is_floating_point() else t for name, t in base.items()
    }
    checkpoints.save(folder / "coded/expert.safetensors", expert)
    for name in ("lossless", "ternary", "signs"):
        coded.encode(
            codec.chosen(Named(name=name)), folder / "coded/expert.safetensors", folder / "coded/base.safetensors",
            folder / f"coded/{name}.weights",
        )  # fmt: skip
    (folder / "packed").mkdir()
    experts = [folder / f"coded/{name}" for name in ("expert.safetensors", "lossless.weights")]
    masks: tuple[shared.Kind, ...] = ("emr", "tall")
    for kind in masks:
        shared.pack(kind, experts, folder / "coded/base.safetensors", folder / "packed" / kind)
    (folder / "statistics").mkdir()
    for name in ("base", "a", "b"):
        save_file({"x.weight": torch.randn(3, 4), "y": torch.randn(5)}, folder / f"statistics/{name}.safetensors")
    facts = {"samples": "10", "estimator": '"expected"', "pool": '"random"'}
    square = torch.randn(4, 4)
    for kind, tensors in (
        ("fisher", {"fisher/x.weight": torch.rand(3, 4), "fisher/y": torch.rand(5)}),
        ("regmean", {"gram/x.weight": square @ square.T}),
    ):
        save_file(tensors, folder / f"statistics/{kind}.stats.safetensors", facts)


def _make_sets(folder: Path) -> None:
    """Data sets of a hub, and one in CLIP_benchmark's layout."""
    images = [Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)) for number in range(4)]
    rows = [{"image": image, "label": number % 2, "text": "a cat"} for number, image in enumerate(images)]
    published.parquet(folder / "parquet/train/0.parquet", rows, {"label": ("cat", "dog")}, group=2)
    for number, image in enumerate(images):
        path = folder / f"images/train/{'cat' if number % 2 else 'dog'}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    names = [f"{'cat' if number % 2 else 'dog'}/{number}.png" for number in range(4)]
    lines = [json.dumps({"file_name": name, "text": "a cat"}) for name in names]
    (folder / "images/train/metadata.jsonl").write_text("\n".join(lines))
    members = [
        one
        for number, image in enumerate(images)
        for one in (
            (f"{number}.png", published.png(image)),
            (f"{number}.json", b'{"label": 1}'),
            (f"{number}.txt", b"x"),
        )
    ]
    published.write_tar(folder / "tars/train/0.tar", members)
    published.clip_benchmark(folder / "clip_benchmark", {"train": [(image, i % 3) for i, image in enumerate(images)]})


def _make_fomo(folder: Path) -> None:
    """A set of FoMo-in-Flux as its archive, and unpacked, each with its annotations."""
    told = {}
    for number in range(4):
        path = f"pictures/{number}.png"
        told[path] = {"classname": "red" if number % 2 else "blue", "synthetic_merged_caption": ["a square"]}
        image = folder / "unpacked/SHAPES" / path
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(image)
    miniatures.fomo_archives(folder / "unpacked", folder / "archives")
    for form in ("unpacked", "archives"):
        (folder / form / "00_info").mkdir()
        (folder / form / "00_info/SHAPES_train.json").write_text(json.dumps(told))
