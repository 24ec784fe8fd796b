"""A small project whose store is a folder, and what arrives there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.arrive import Request, Verdict, arrive
from tasks.storage import dvc, dvc_config
from tasks.storage.dvc_config import Remote
from tests import project as projects

Arrive = Callable[..., Verdict]

PARAMS = """\
timeline: tiny   # a comment
threads: 1

base:
  {model: tiny.json, pretrained: train, train: {steps: 8, batch_size: 16}, pretraining: ["images:drawings/base#train"]}

stream:            # what arrives
  - {name: first,  update: ["images:drawings/first#train"]}    # colours
  # more to come

train: {steps: 6,   batch_size: 12}
evaluate:
  adaptation: [{name: first, test: ["images:drawings/first#test"]}]
  retention:  [{name: base, test: ["images:drawings/base#test"]}]   # never arrives again
store: {remote: disk}
"""


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = projects.make(tmp_path_factory.mktemp("arrive") / "project")
    (folder / "params.yaml").write_text(PARAMS)
    projects.git(folder, "commit", "--quiet", "--all", "--message", "params")
    return folder


@pytest.fixture
def project(empty: Path, tmp_path: Path) -> Path:
    """With a DVC remote in the folder ``store`` beside it."""
    folder = Path(shutil.copytree(empty, tmp_path / "project", symlinks=True))
    dvc_config.write_remote(folder, Remote("disk", str(tmp_path / "store")))
    return folder


@pytest.fixture(scope="session")
def dvc_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dvc.Dvc]:
    with dvc.Dvc(tmp_path_factory.mktemp("dvc")) as process:
        yield process


@pytest.fixture
def one_dvc(dvc_process: dvc.Dvc, monkeypatch: pytest.MonkeyPatch) -> None:
    """One DVC process for all tests."""
    from contextlib import nullcontext

    from tasks.storage import pointers, store

    for module in (pointers, store):
        monkeypatch.setattr(module, "open_dvc", lambda _: nullcontext(dvc_process))
    monkeypatch.setattr(dvc, "reused", lambda _: nullcontext())


@pytest.fixture
def arriving(project: Path, one_dvc: None) -> Arrive:  # noqa: ARG001 - it works behind the scenes
    """Let something arrive in the project."""

    def run(name: str, *data: Any, expert: Path | None = None, **options: Any) -> Verdict:
        sources = tuple(str(one) if isinstance(one, Path) else one for one in data)
        return arrive(project, Request(name, sources, str(expert) if expert else None), **options)

    return run


def noise(seed: int) -> Image.Image:
    """An image like no other."""
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def drop(folder: Path, classes: dict[str, int], seed: int = 0) -> Path:
    """A folder with so many images for each class."""
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise(seed * 10_000 + number * 100 + i).save(folder / name / f"{i}.png")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Everything in a project that a refusal must leave as it is."""
    kept = [folder / "params.yaml", *sorted((folder / "data").rglob("*")), *sorted((folder / ".dvc/cache").rglob("*"))]
    return {str(path): path.read_bytes() for path in kept if path.is_file()}
