"""Ready streams in miniature: three sets of each kind in the exact layouts, and manifests that name them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from tests import published
from tests.hub import Hub

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
NAMES = tuple(COLOURS)
TRAIN, TEST = 12, 6
"""Samples of each part of a set."""


def noisy(label: int, number: int) -> Image.Image:
    """A picture of a class's colour; no two are the same."""
    random = np.random.default_rng(number)
    pixels = np.array(COLOURS[NAMES[label]]) + random.integers(-40, 40, (20, 20, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def part(start: int, count: int) -> list[tuple[Image.Image, int]]:
    return [(noisy(i % len(NAMES), start + i), i % len(NAMES)) for i in range(count)]


def on_hub(server: Hub, scratch: Path, names: Sequence[str]) -> None:
    """Data sets ``mini/NAME`` in Parquet, whose own names of classes are not those of prompts."""
    for number, name in enumerate(names):
        files = {}
        for split, start, count in (("train", 0, TRAIN), ("test", 500, TEST)):
            rows = [{"image": image, "label": label} for image, label in part(1000 * number + start, count)]
            file = published.parquet(scratch / name / f"{split}.parquet", rows, {"label": ["c0", "c1", "c2"]})
            files[f"data/{split}-00000-of-00001.parquet"] = file
        server.commit(f"mini/{name}", files, kind="datasets")


def in_folders(root: Path, names: Sequence[str]) -> None:
    """A folder for each set, with parts and class folders in it."""
    for number, name in enumerate(names):
        for split, start, count in (("train", 0, TRAIN), ("test", 500, TEST)):
            for i, (image, label) in enumerate(part(1000 * number + start, count)):
                home = root / name / split / f"{label}-{NAMES[label]}"
                home.mkdir(parents=True, exist_ok=True)
                image.save(home / f"{i:02d}.png")


def in_tars(root: Path, names: Sequence[str]) -> None:
    """A folder for each set in CLIP_benchmark's layout."""
    for number, name in enumerate(names):
        parts = {"train": part(1000 * number, TRAIN), "test": part(1000 * number + 500, TEST)}
        published.clip_benchmark(root / name, parts, NAMES, templates=("a photo of a {c}.", "a picture of a {c}."))


def vision(project: Path, names: Sequence[str], sources: str, held_out: str, scores: float | None = None) -> Path:
    """The manifest ``mini-vision`` of a project: tasks ``names`` at ``sources`` with {name}, and one set held out."""
    common: dict[str, object] = {"licence": "CC0", "counts": {"train": TRAIN, "test": TEST}}
    common |= {} if scores is None else {"score": scores}
    hosted = sources.startswith("hf:")
    words = {"templates": ["a photo of a {}.", "a picture of a {}."], "classes": list(NAMES)} if hosted else {}
    count = {} if hosted else {"classes_count": len(NAMES)}
    content = {
        "stream": "mini-vision",
        "about": "three tasks in miniature",
        "base": {"model": "tiny.json", "pretrained": "base.safetensors"},
        "scored_by": "tiny.json, base.safetensors",
        "train": {"method": "locked-text", "steps": 3, "batch_size": 6, "lr": 1e-3,
                  "mixture": {"pretraining": 0, "update": 1, "buffer": 0}},
        "time": {"init": "zs", "deploy": "all", "technique": {"name": "opcm"}},
        "grid": {"init": ["zs"], "deploy": ["all"], "technique": ["opcm", "linear"], "references": []},
        "folder": "images:{data}/{name}",
        "sets": [
            *({"name": name, "title": name, "sources": [sources.replace("{name}", name)], **common, **words, **count}
              for name in names),
            {"name": "held-out", "title": "held out", "role": "retention", "sources": [held_out], **common},
        ],
    }  # fmt: skip
    return _written(project / "streams/mini-vision.yaml", content)


def fomo(root: Path, project: Path) -> Path:
    """Three sets of FoMo-in-Flux below ``root`` with annotations, a class sequence, and the manifest ``mini-fomo``.

    SHAPES arrives, SKETCHES is a set of pairs that arrives, BIRDS is only tested on, and has small images.
    """
    for number, name in enumerate(("SHAPES", "SKETCHES", "BIRDS")):
        for split, start, count in (("train", 0, TRAIN), ("test", 500, TEST)):
            annotations, small = {}, {}
            for i, (image, label) in enumerate(part(1000 * number + start, count)):
                path = f"pictures-{split}/{i}.png"
                pairs = name == "SKETCHES"
                entry = {
                    "classname": NAMES[label],
                    "default_caption": f"A sketch of {NAMES[label]} number {split} {i}." if pairs else None,
                    "primer_caption": None if pairs else f"A photo of {NAMES[label]}.",
                    "synthetic_caption": None if pairs else ["all of one colour"],
                    "synthetic_merged_caption": None if pairs else [f"It is all {NAMES[label]}, number {i}."],
                    "target": label,
                }
                annotations[path] = entry
                _save(image, root / name / path)
                if name == "BIRDS":
                    smaller = f"{name}_{split}_224/{path}"
                    small[smaller] = entry
                    _save(image.resize((16, 16)), root / name / smaller)
            _json(root / f"00_info/{name}_{split}.json", annotations)
            if small:
                _json(root / f"00_info/{name}_{split}_224.json", small)
        _json(root / f"00_info/{name}_classnames.json", list(NAMES))
    order = [("SHAPES", 1), ("SKETCHES", 0), ("SHAPES", 0), ("SKETCHES", 2), ("SHAPES", 2), ("SKETCHES", 1)]
    _json(root / "random_1.json", [f"{name}+++{NAMES[label]}" for name, label in order])
    sets = [
        {"name": "SHAPES", "title": "Shapes", "templates": ["A photo of {}."], "classes_count": 3},
        {"name": "SKETCHES", "title": "Sketches", "pairs": True},
        {"name": "BIRDS", "title": "Birds", "role": "retention", "templates": ["A photo of {}."], "classes_count": 3},
    ]
    common = {"licence": "CC0", "missing": "ask us", "counts": {"train": TRAIN, "test": TEST}}
    content = {
        "stream": "mini-fomo", "about": "FoMo-in-Flux in miniature",
        "base": {"model": "tiny.json", "pretrained": "base.safetensors"},
        "scored_by": "tiny.json, base.safetensors",
        "train": {"steps": 9, "batch_size": 4, "lr": 1e-3, "mixture": {"pretraining": 0, "update": 0.5, "buffer": 0.5}},
        "steps_of": {2: 3},
        "time": {"init": "ema", "deploy": "ema", "technique": {"name": "linear", "weight": 0.5}},
        "grid": {"technique": ["linear"]},
        "folder": "fomo:{data}/{name}", "archives": "fomo-tar:{data}/{name}",
        "sets": [{**one, **common} for one in sets],
    }  # fmt: skip
    return _written(project / "streams/mini-fomo.yaml", content)


def fomo_archives(root: Path, to: Path) -> Path:
    """The sets of `fomo` as the authors' archives: ``NAME.tar`` with members ``NAME/…``, no annotations."""
    to.mkdir(parents=True, exist_ok=True)
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name != "00_info"):
        with tarfile.open(to / f"{folder.name}.tar", "w") as tar:
            tar.add(folder, folder.name)
    return to


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _written(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    YAML(typ="safe").dump(content, path)
    return path
