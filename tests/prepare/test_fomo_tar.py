"""FoMo-in-Flux's archives as they come, in a folder and on a hub: the same data as unpacked, and what can be wrong."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.model.datasets import Dataset
from tasks.prepare import fetch_arrival, node, notes_on
from tasks.prepare.demand import demand
from tasks.prepare.registry import parse, written
from tests import hub, miniatures
from tests.prepare.conftest import arrival, params

Prepare = Callable[..., Dataset]


@pytest.fixture(autouse=True)
def root(project: Path) -> Path:
    """A folder ``tars`` with archives and annotations, beside ``fomo``, where they are unpacked."""
    miniatures.fomo(project / "fomo", project)
    tars = miniatures.fomo_archives(project / "fomo", project / "tars")
    shutil.copytree(project / "fomo/00_info", tars / "00_info")
    return tars


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub.Hub]:
    home = tmp_path_factory.mktemp("archives")
    miniatures.fomo(home / "fomo", home)
    archives = miniatures.fomo_archives(home / "fomo", home / "tars")
    with hub.serving() as one:
        one.commit("org/archives", archives, kind="datasets")
        shutil.copytree(home / "fomo/00_info", archives / "data_lib/00_info")
        one.commit("org/complete", archives, kind="datasets")
        yield one


@pytest.fixture(autouse=True)
def used(server: hub.Hub, tmp_path: Path) -> Iterator[None]:
    with server.used(tmp_path / "home"):
        yield


def same(one: Dataset, other: Dataset) -> bool:
    assert one.ids == other.ids
    assert one.captions == other.captions
    assert one.card.classes == other.card.classes
    return bool((one.images[:] == other.images[:]).all())


@pytest.mark.parametrize("place", ["tars", "hf:org/complete", "hf:org/archives"])
@pytest.mark.parametrize(
    "settings",
    [
        {"path": "SHAPES"}, {"path": "SHAPES", "only": ["red", "blue"]}, {"path": "SHAPES", "captions": "primer"},
        {"path": "SHAPES", "share": "[:50%]"}, {"path": "SKETCHES", "pairs": True}, {"path": "BIRDS"},
    ],
    ids=str,
)  # fmt: skip
def test_archives_give_what_unpacked_sets_give(prepare: Prepare, place: str, settings: dict[str, Any]) -> None:
    own = {**settings, "split": "train"}
    unpacked = prepare({"source": "fomo", **own, "path": f"fomo/{settings['path']}"})
    info = {"info": "fomo/00_info"} if place == "hf:org/archives" else {}
    assert same(prepare({"source": "fomo-tar", **own, **info, "path": f"{place}/{settings['path']}"}), unpacked)


def test_a_state_keeps_the_images_that_are_read_and_says_what_of(
    prepare: Prepare, project: Path, server: hub.Hub
) -> None:
    server.requests.clear()
    data = prepare({"source": "fomo-tar", "path": "hf:org/complete/SHAPES", "split": "train", "only": ["red"]})
    raw = project / "data/raw/arrival"
    (kept,) = raw.rglob("SHAPES.tar")
    with tarfile.open(kept) as tar:
        assert len(tar.getnames()) == len(data) == miniatures.TRAIN // 3
    assert not [one for one in server.requests if "SKETCHES" in one.path]
    (said,) = [note for note in notes_on(raw) if "images kept" in note]
    assert said.startswith("fomo-tar: hf:org/complete/SHAPES: 4 of 18 images kept of SHAPES.tar (")
    (origin,) = data.card.origins
    commit = server.repositories["datasets/org/complete"].refs["main"]
    assert origin.source == f"hf:org/complete@{commit}"
    ((name, size, _),) = origin.files
    assert name.startswith("SHAPES.tar (4 of the 18 images of the file with SHA-256 ")
    assert size == kept.stat().st_size
    before = kept.read_bytes(), (raw / "fomo-tar").rglob("annotations.json")
    shutil.rmtree(raw)
    prepare({"source": "fomo-tar", "path": "hf:org/complete/SHAPES", "split": "train", "only": ["red"]})
    (again,) = raw.rglob("SHAPES.tar")
    assert again.read_bytes() == before[0]


def test_raw_files_need_neither_hub_nor_annotations(project: Path, downloads: Path, server: hub.Hub) -> None:
    one = arrival({"source": "fomo-tar", "path": "hf:org/archives/SHAPES", "split": "train", "info": "fomo/00_info"})
    settings = params(arrival=one, step=1)
    fetch_arrival(settings, one, project / "data/raw/arrival", downloads, project=project)
    shutil.rmtree(project / "fomo")
    server.requests.clear()
    node.prepare_arrival(project, settings)
    assert len(Dataset(project / "data/step/arrival")) == miniatures.TRAIN
    assert not server.requests


def test_shards_and_names_that_only_begin_alike(prepare: Prepare, root: Path, project: Path) -> None:
    (root / "SHAPES.tar").unlink()
    (root / "SHAPES").mkdir()
    files = sorted(file for file in (project / "fomo/SHAPES").rglob("*.png"))
    for number in range(2):
        with tarfile.open(root / f"SHAPES/{number}.tar", "w") as tar:
            for file in files[number::2]:
                tar.add(file, f"./SHAPES/{file.relative_to(project / 'fomo/SHAPES')}")
    shutil.copyfile(root / "BIRDS.tar", root / "SHAPES_A.tar")
    assert same(prepare("fomo-tar:tars/SHAPES#train"), prepare("fomo:fomo/SHAPES#train"))


def test_the_price_of_archives_is_said_before_any_comes(project: Path, server: hub.Hub) -> None:
    server.requests.clear()
    specs = [f"fomo-tar:hf:org/complete/SHAPES#{part}" for part in ("train", "test")]
    found = demand([("stream", specs)], project, project / "cache")
    assert found is not None
    size = len(server.files("org/complete", kind="datasets")["SHAPES.tar"])
    assert (found.files, found.download, found.kept) == (1, size, size)
    assert not [one for one in server.requests if one.method == "GET" and "SHAPES.tar" in one.path]


def test_an_address_is_pinned_with_its_set(project: Path, server: hub.Hub) -> None:
    commit = server.repositories["datasets/org/complete"].refs["main"]
    source = parse("fomo-tar:hf:org/complete/SHAPES#train", "x").pinned(project)  # type: ignore[attr-defined]
    assert written(source) == f"fomo-tar:hf:org/complete@{commit}/SHAPES#train"


def test_what_is_wrong_is_one_line(prepare: Prepare, root: Path) -> None:
    name = "pictures-train/3.png"
    annotations = root / "00_info/SHAPES_train.json"
    content = json.loads(annotations.read_text())
    annotations.write_text(json.dumps({**content, "gone.png": content[name]}))
    cases: list[tuple[Any, str]] = [
        ("fomo-tar:tars/SHAPES", "has the splits train, test; pick one"),
        ("fomo-tar:tars/SHAPES#validation", "has no split 'validation'"),
        ("fomo-tar:tars/NONE#train", r"there is no NONE\.tar"),
        ("fomo-tar:none/SHAPES#train", "no such folder"),
        ("fomo-tar:hf:org/complete#train", "names no set; write hf:ORG/NAME/SET"),
        ("fomo-tar:hf:org/none/SHAPES#train", "no such repository"),
        (
            "fomo-tar:hf:org/archives/SHAPES#train",
            r"the folder 00_info there has no SHAPES_train\.json; give the folder",
        ),
        ("fomo-tar:tars/SHAPES#train", r"1 of 13 images are not in SHAPES\.tar, such as gone\.png"),
    ]
    for spec, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            prepare(spec)
        assert "\n" not in str(caught.value)
    (root / "SHAPES.tar").write_bytes((root / "SHAPES.tar").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"SHAPES\.tar is (damaged or no tar file|cut off)"):
        prepare("fomo-tar:tars/SHAPES#train")
