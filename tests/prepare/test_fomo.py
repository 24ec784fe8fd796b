"""FoMo-in-Flux's archives and annotations: captions, classes, pairs, small images, sequences, and what can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.model.datasets import Dataset
from tasks.prepare import at_most, notes_on
from tasks.prepare.sources.fomo import sequence
from tests import miniatures

Prepare = Callable[..., Dataset]


@pytest.fixture(autouse=True)
def root(project: Path) -> Path:
    miniatures.fomo(project / "fomo", project)
    return project / "fomo"


def test_merged_captions_and_the_benchmarks_classes(prepare: Prepare) -> None:
    data = prepare("fomo:fomo/SHAPES#train")
    assert len(data) == miniatures.TRAIN
    assert data.card.classes == ("blue", "green", "red")
    assert data.captions[data.ids.index("pictures-train/4.png")] == "It is all green, number 4."
    assert at_most(["fomo:fomo/SHAPES#train"], "x", data.folder.parents[2]) == miniatures.TRAIN


def test_other_captions_where_asked_for_and_a_note_where_there_are_none(prepare: Prepare, project: Path) -> None:
    primer = prepare({"source": "fomo", "path": "fomo/SHAPES", "split": "train", "captions": "primer"})
    assert set(primer.captions) == {"A photo of red.", "A photo of green.", "A photo of blue."}
    (folder := project / "data/raw/arrival").exists()
    prepare({"source": "fomo", "path": "fomo/SHAPES", "split": "test", "captions": "default"})
    assert any("6 of 6 samples have no default caption, and take another one" in note for note in notes_on(folder))


def test_some_classes_bring_their_own_images_alone(prepare: Prepare, project: Path) -> None:
    data = prepare({"source": "fomo", "path": "fomo/SHAPES", "split": "train", "only": ["red"]})
    assert len(data) == miniatures.TRAIN // 3
    assert len(list((project / "data/raw/arrival/fomo").rglob("*.png"))) == miniatures.TRAIN // 3


def test_pairs_have_every_caption_and_no_class(root: Path, prepare_test: Prepare) -> None:
    file = root / "00_info/SKETCHES_test.json"
    content = json.loads(file.read_text())
    content["pictures-test/0.png"]["default_caption"] = ["One.", "Two."]
    file.write_text(json.dumps(content))
    data = prepare_test({"source": "fomo", "path": "fomo/SKETCHES", "split": "test", "pairs": True})
    assert len(data) == miniatures.TEST + 1
    assert (data.labels == -1).all()
    assert data.captions[:2] == ["One.", "Two."]


def test_small_images_are_read_where_they_are_there(root: Path, prepare: Prepare) -> None:
    assert prepare("fomo:fomo/BIRDS#train").ids[0].startswith("BIRDS_train_224/")
    for file in (root / "BIRDS/BIRDS_train_224").rglob("*.png"):
        file.unlink()
    assert prepare("fomo:fomo/BIRDS#train").ids[0].startswith("pictures-train/")


def test_annotations_elsewhere(root: Path, prepare: Prepare) -> None:
    (root / "00_info").rename(root.parent / "annotations")
    with pytest.raises(UserError, match=r"has no SHAPES_train\.json or SHAPES_train_mini\.json; give the folder"):
        prepare("fomo:fomo/SHAPES#train")
    assert len(prepare({"source": "fomo", "path": "fomo/SHAPES", "split": "train", "info": "annotations"})) == 12


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "SHAPES_train.json: not annotations of FoMo-in-Flux"),
        ("{}", "SHAPES_train.json: names no images"),
        ("{", "SHAPES_train.json: not annotations of FoMo-in-Flux"),
        ('{"../x.png": {"classname": "red"}}', r"SHAPES_train.json: \.\./x\.png: lies outside the set's folder"),
        ('{"/etc/x.png": {"classname": "red"}}', "lies outside the set's folder"),
        (
            json.dumps({"y" * 5000: {"classname": "red"}}),
            r"1 of 1 images of SHAPES_train.json are not there, such as yyy",
        ),
        ('{"a\\u0000b.png": {"classname": "red"}}', "1 of 1 images of SHAPES_train.json are not there"),
        ('{"gone.png": {"classname": "red"}}', "1 of 1 images of SHAPES_train.json are not there, such as gone.png"),
        ('{"x.png": {"classname": 3}}', "not annotations of FoMo-in-Flux"),
    ],
)
def test_wrong_annotations_are_named(root: Path, prepare: Prepare, content: str, message: str) -> None:
    (root / "00_info/SHAPES_train.json").write_text(content)
    with pytest.raises(UserError, match=message):
        prepare("fomo:fomo/SHAPES#train")


def test_a_part_must_be_picked(prepare: Prepare) -> None:
    with pytest.raises(UserError, match="has the parts train and test; pick one"):
        prepare("fomo:fomo/SHAPES")


def test_a_class_sequence_is_read_and_checked(root: Path, tmp_path: Path) -> None:
    found = sequence(root / "random_1.json")
    assert found[:2] == [("SHAPES", "green"), ("SKETCHES", "red")]
    for content, message in (
        ("{}", "expected a JSON list of texts"),
        ('["SHAPES-red"]', r"entry 0: expected dataset\+\+\+class, got 'SHAPES-red'"),
        ('["A+++b", "A+++b"]', r"entry 1: A\+\+\+b is there twice"),
        ("[", "not a readable class sequence"),
    ):
        (tmp_path / "s.json").write_text(content)
        with pytest.raises(UserError, match=message):
            sequence(tmp_path / "s.json")


def test_pairs_of_some_classes_are_drawn_by_what_the_annotations_say(prepare: Prepare) -> None:
    data = prepare({"source": "fomo", "path": "fomo/SKETCHES", "split": "train", "pairs": True, "only": ["red"]})
    assert len(data) == miniatures.TRAIN // 3
    assert all(caption.startswith("A sketch of red") for caption in data.captions)
