"""Projects with a model of 32 pixels, small photographs, and one download of the icon sets for all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.model.datasets import Dataset
from tasks.params import Arrival, Params
from tasks.prepare import fetch_arrival, fetch_evaluation, node

SIZE = 32


@pytest.fixture(scope="session")
def downloads(request: pytest.FixtureRequest) -> Path:
    """The download cache; kept between runs, as a user's is. Its content is verified at each use."""
    return Path(request.config.cache.mkdir("downloads"))


@pytest.fixture(scope="session")
def raw_icons(downloads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All icon sets, as an arrival's raw files have them."""
    raw = tmp_path_factory.mktemp("icons") / "raw"
    fetch_arrival(params(), arrival("icons:food"), raw, downloads)
    return raw / "icons"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    model = tmp_path / "data/history/model"
    model.mkdir(parents=True)
    content = {"image_size": SIZE, "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bicubic"}
    (model / "preprocess.json").write_text(json.dumps(content | {"resize_mode": "shortest"}))
    return tmp_path


@pytest.fixture
def prepare(project: Path, downloads: Path) -> Callable[..., Dataset]:
    """Fetch and prepare some sources as an arrival."""

    def run(*specs: Any, seed: int = 0) -> Dataset:
        one = arrival(*specs)
        settings = params(seed=seed, arrival=one, step=1)
        fetch_arrival(settings, one, project / "data/raw/arrival", downloads, project=project)
        node.prepare_arrival(project, settings)
        return Dataset(project / "data/step/arrival")

    return run


@pytest.fixture
def prepare_test(project: Path, downloads: Path) -> Callable[..., Dataset]:
    """Fetch and prepare some sources as an evaluation set."""

    def run(*specs: Any, **settings_of_set: Any) -> Dataset:
        settings = params(evaluate=evaluation(*specs, **settings_of_set))
        fetch_evaluation(settings, project / "data/raw/evaluation", downloads, project=project)
        node.prepare_evaluation(project, settings)
        return Dataset(project / "data/step/evaluation/one")

    return run


def params(**changes: Any) -> Params:
    content: dict[str, Any] = {
        "timeline": "test",
        "base": {"model": "model.json", "pretrained": "base.safetensors"},
        "stream": [],
        "train": {"steps": 1},
        "evaluate": evaluation("icons:food/test"),
    }
    return Params.model_validate(content | changes)


def arrival(*specs: Any) -> Arrival:
    return Arrival(name="new", update=list(specs))


def evaluation(*specs: Any, **settings: Any) -> dict[str, Any]:
    """Two sets of the same sources; ``settings`` are further keys of both."""
    one, other = ({"name": name, "test": list(specs), **settings} for name in ("one", "other"))
    return {"adaptation": [one], "retention": [other]}


def picture(number: int, width: int = 48, height: int = 40) -> Image.Image:
    """A photograph of its own colour, with a gradient."""
    x = np.linspace(0, 60, width)[None, :, None]
    y = np.linspace(0, 60, height)[:, None, None]
    colour = np.array([(37 * number) % 190, (91 * number) % 190, (53 * number) % 190])
    return Image.fromarray((colour + x + y).astype(np.uint8))


def image_folder(root: Path, classes: dict[str, int], start: int = 0) -> Path:
    """One folder a class with so many pictures."""
    number = start
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(number).save(root / name / f"{i:02d}.png")
            number += 1
    return root
