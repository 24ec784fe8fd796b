"""docs/guides/data.md: every source of its example is prepared, from miniatures of these names and layouts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import yaml
from tasks.model.datasets import Dataset
from tasks.params import Params
from tasks.prepare import check, demanded, fetch_arrival, fetch_evaluation, node
from tasks.prepare.registry import kinds, parse_all
from tests import hub, miniatures, published
from tests.prepare.conftest import image_folder, picture
from tests.prepare.test_photographs import png, write_csv, write_tar
from tests.prepare.test_torchvision import archive, md5

PAGE = Path(__file__).parents[2] / "docs/guides/data.md"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    content: dict[str, Any] = yaml.load(text)
    return content


@pytest.fixture
def world(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The files that the example names: in the project, on a hub, and where torchvision looks."""
    image_folder(project / "data/photos", {"cat": 8, "dog": 8})
    write_csv(project / "data/pairs.csv", [{"image": "photos/cat/00.png", "caption": "a cat"}])
    write_tar(project / "data/shards/0.tar", [{"png": png(n), "txt": b"a picture"} for n in range(2)])
    miniatures.fomo(project / "archives", project)
    shutil.copytree(project / "archives/SHAPES", project / "archives/CUB200")
    for one in (project / "archives/00_info").glob("SHAPES_*"):
        shutil.copy(one, one.with_name(one.name.replace("SHAPES", "CUB200")))
    miniatures.fomo(tmp_path / "unpacked", project)
    (tmp_path / "unpacked/SHAPES").rename(tmp_path / "unpacked/CARS196")
    miniatures.fomo_archives(tmp_path / "unpacked", project / "tars")
    shutil.copytree(project / "archives/00_info", project / "tars/00_info")
    for one in (project / "tars/00_info").glob("SHAPES_*"):
        one.rename(one.with_name(one.name.replace("SHAPES", "CARS196")))
    samples = [(picture(number), number % 3) for number in range(6)]
    small = tmp_path / "made"
    rows = [{"image": picture(n), "label": n % 2} for n in range(4)]
    digits = published.parquet(small / "digits.parquet", rows, {"label": ["zero", "one"]})
    scenes = published.parquet(small / "scenes.parquet", rows, {"label": ["abbey", "zoo"]})
    pairs = published.parquet(small / "pairs.parquet", [{"image": picture(0), "caption": ["a dog", "one dog"]}])
    card = "---\nconfigs:\n- config_name: cropped_digits\n  data_files: cropped_digits/train-*\n---\n"
    files = {
        f"dtd/{name}": content
        for name, content in (
            ("images/dotted/1.jpg", published.png(picture(1), "JPEG")), ("labels/train1.txt", b"dotted/1.jpg\n"),
        )
    }  # fmt: skip
    content = archive(project / "downloads/torchvision/DTD/dtd/dtd-r1.0.1.tar.gz", files)
    monkeypatch.setattr("torchvision.datasets.DTD._MD5", md5(content))
    with hub.serving() as server, server.used(tmp_path / "home"):
        for name in ("cifar100", "pets"):
            folder = published.clip_benchmark(small / name, {"train": samples, "test": samples})
            server.commit(f"clip-benchmark/wds_vtab-{name}", folder, kind="datasets")
        server.commit(
            "ufldl-stanford/svhn", {"cropped_digits/train-0.parquet": digits, "README.md": card}, kind="datasets"
        )
        server.commit("tanganke/sun397", {"data/train-0.parquet": scenes}, kind="datasets")
        server.commit("nlphuji/flickr30k", {"data/test-0.parquet": pairs}, kind="datasets")
        yield


@pytest.mark.usefixtures("world")
def test_every_source_of_the_example_is_prepared(example: dict[str, Any], project: Path) -> None:
    given = Params.model_validate(example)
    check(given, project)
    said = demanded(given, range(1, len(given.stream) + 1), project, project / "downloads", tests=True)
    assert said is not None
    assert "to download" in said
    for step, one in enumerate(given.stream, start=1):
        fetch_arrival(given, one, project / "data/raw/arrival", project / "downloads", project=project)
        node.prepare_arrival(project, given.model_copy(update={"arrival": one, "step": step}))
        assert len(Dataset(project / "data/step/arrival")) > 0, one.name
    fetch_evaluation(given, project / "data/raw/evaluation", project / "downloads", project=project)
    node.prepare_evaluation(project, given)
    for name in ("cifar", "pets"):
        assert Dataset(project / f"data/step/evaluation/{name}").card.templates


def test_the_example_has_every_kind_but_the_demos(example: dict[str, Any]) -> None:
    given = Params.model_validate(example)
    sources = parse_all([spec for one in given.stream for spec in one.update], "stream")
    assert {source.name for source in sources} == set(kinds()) - {"icons"}
