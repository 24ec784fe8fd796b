"""docs/troubleshooting.md: each section's error is produced here, and is the one that the page shows."""

# ruff: noqa: ARG001 - every trouble is given a folder

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from flows import hooks
from flows.cli import options
from tasks import params
from tasks.errors import UserError
from tasks.merge import merge
from tasks.prepare.registry import parse as source
from tasks.storage import dvc_config, locks
from tests.project import PARAMS, ROOT

Trouble = Callable[[Path], Any]
TROUBLES: dict[str, Trouble] = {}


def about(section: str) -> Callable[[Trouble], Trouble]:
    def add(trouble: Trouble) -> Trouble:
        TROUBLES[section] = trouble
        return trouble

    return add


def given(**changes: Any) -> params.Params:
    return params.parse(json.dumps({**PARAMS, **changes}), Path("params.yaml"))


def models(folder: Path, **tensors: np.ndarray) -> tuple[list[Path], Path]:
    """An expert with these tensors, and a base of two."""
    save_file({"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32)}, folder / "base.safetensors")
    save_file({"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32), **tensors}, folder / "expert.safetensors")
    return [folder / "expert.safetensors"], folder / "base.safetensors"


def merged(folder: Path, technique: str = "ties", **tensors: np.ndarray) -> None:
    experts, base = models(folder, **tensors)
    merge(technique, experts, base, folder / "out.safetensors")


@about("A misspelt key")
def _(folder: Path) -> None:
    given(train={"steps": 6, "batchsize": 12})


@about("A colon inside brackets")
def _(folder: Path) -> None:
    params.parse("timeline: x\nstream: [{name: a, update: [icons: food]}]\nseed: [icons:food: x]", Path("params.yaml"))


@about("No params.yaml here")
def _(folder: Path) -> None:
    params.load(folder / "params.yaml")


@about("Not a project")
def _(folder: Path) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        options.project()
    finally:
        os.chdir(before)


@about("A name twice")
def _(folder: Path) -> None:
    given(stream=[PARAMS["stream"][0], PARAMS["stream"][0]])


@about("A base that needs data")
def _(folder: Path) -> None:
    given(base={"model": "tiny.json", "pretrained": "train"})


@about("Steps or a budget")
def _(folder: Path) -> None:
    given(train={"batch_size": 12})


@about("A batch that does not divide")
def _(folder: Path) -> None:
    given(train={"steps": 6, "batch_size": 9, "processes": 2})


@about("A gate on a set that is not evaluated")
def _(folder: Path) -> None:
    given(gate={"require": ["score.flags >= 20%"]})


@about("An unknown kind of source")
def _(folder: Path) -> None:
    source("photos:spring", "stream[0].update")


@about("Images outside class folders")
def _(folder: Path) -> None:
    for name in ("1.png", "tulip/2.png"):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / "photos" / name)
    source("images:photos", "stream[0].update").check(folder)


@about("A folder that is not there")
def _(folder: Path) -> None:
    source("images:photos", "stream[0].update").check(folder)


@about("An unknown technique")
def _(folder: Path) -> None:
    merged(folder, "tise")


@about("A setting that a technique does not have")
def _(folder: Path) -> None:
    experts, base = models(folder)
    merge("ties", experts, base, folder / "out.safetensors", settings={"densty": 0.2})


@about("A technique without its base")
def _(folder: Path) -> None:
    experts, _ = models(folder)
    merge("ties", experts, None, folder / "out.safetensors")


@about("NaN in a checkpoint")
def _(folder: Path) -> None:
    merged(folder, b=np.array([1, np.nan, 3], np.float32))


@about("A Git LFS pointer")
def _(folder: Path) -> None:
    experts, base = models(folder)
    experts[0].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    merge("ties", experts, base, folder / "out.safetensors")


@about("A truncated checkpoint")
def _(folder: Path) -> None:
    experts, base = models(folder)
    experts[0].write_bytes(experts[0].read_bytes()[:-4])
    merge("ties", experts, base, folder / "out.safetensors")


@about("Names of another library")
def _(folder: Path) -> None:
    experts, base = models(folder)
    save_file({"model.x": np.ones((2, 2), np.float32), "model.y": np.ones(3, np.float32)}, experts[0])
    merge("ties", experts, base, folder / "out.safetensors")


@about("Quantised weights")
def _(folder: Path) -> None:
    experts, base = models(folder)
    for path in (*experts, base):
        save_file(
            {
                "a.weight": np.ones((2, 2), np.int8),
                "a.weight_scale": np.ones(2, np.float32),
                "b": np.ones(3, np.float32),
            },
            path,
        )
    merge("ties", experts, base, folder / "out.safetensors")


@about("Hooks of somebody else")
def _(folder: Path) -> None:
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    hooks.require_trusted(folder, params.Hooks(failed=["notify-send", "failed"]))


@about("A store that is not set up")
def _(folder: Path) -> None:
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").touch()
    dvc_config.remote(folder, "store")


@about("Another run of the timeline")
def _(folder: Path) -> None:
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    with locks.writing(folder, "demo"), locks.writing(folder, "demo"):
        pass


@about("No suitable Python")
def _(folder: Path) -> None:
    for file in (*ROOT.glob("requirements*.lock"), ROOT / "pyproject.toml"):
        (folder / file.name).touch()
    command = ["make", "--file", str(ROOT / "Makefile"), "demo", "PYTHON=python2.7"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    raise UserError(done.stderr.splitlines()[0])


PAGE = (ROOT / "docs/troubleshooting.md").read_text()
SECTIONS = dict(re.findall(r"^### ([^\n]+)\n\n```text\n(.*?)\n```\n\n(?=\S)", PAGE, flags=re.DOTALL | re.MULTILINE))
"""The error that each section shows; … stands for what differs from case to case."""


def test_every_section_of_the_page_has_its_trouble_and_the_other_way_round() -> None:
    assert re.findall(r"^### (.+)", PAGE, flags=re.MULTILINE) == list(SECTIONS)
    assert sorted(SECTIONS) == sorted(TROUBLES)
    assert len(SECTIONS) >= 20


@pytest.mark.parametrize("section", SECTIONS)
def test_the_error_is_the_one_that_the_page_shows(section: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        TROUBLES[section](tmp_path)
    shown = ".*".join(re.escape(" ".join(part.split())) for part in SECTIONS[section].split("…"))
    assert re.fullmatch(re.sub(r"(\\ )?\.\*(\\ )?", ".*", shown), " ".join(str(raised.value).split())), raised.value
