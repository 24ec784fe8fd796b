"""Sources that read some of their classes alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.model.datasets import Dataset
from tests.prepare.conftest import image_folder

Prepare = Callable[..., Dataset]


def source(kind: str, *only: str, **settings: Any) -> dict[str, Any]:
    return {"source": kind, **settings, "only": list(only)}


def test_images_of_some_folders_and_only_they_are_fetched(project: Path, prepare: Prepare) -> None:
    image_folder(project / "photos", {"cat": 3, "polar_bear": 2, "dog": 2})
    whole = prepare("images:photos")
    found = prepare(source("images", "polar bear", "cat", path="photos"))
    assert found.card.classes == ("cat", "polar bear")
    assert set(found.ids) == {i for i in whole.ids if "dog" not in i}
    assert len(list((project / "data/raw/arrival").rglob("*.png"))) == 5
    alone = prepare(source("images", "dog", path="photos"))
    assert (alone.card.classes, len(alone)) == (("dog",), 2)


def test_two_selections_of_one_folder_do_not_get_into_each_others_way(project: Path, prepare: Prepare) -> None:
    image_folder(project / "photos", {"cat": 3, "dog": 2})
    both = prepare(source("images", "cat", path="photos"), source("images", "dog", path="photos"))
    assert sorted(both.ids) == sorted(prepare("images:photos").ids)


def test_a_drawn_split_is_the_same_for_some_classes_as_for_all(project: Path, prepare: Prepare) -> None:
    image_folder(project / "photos", {"cat": 20, "dog": 20})
    whole = prepare("images:photos#train")
    found = prepare(source("images", "dog", path="photos", split="train"))
    assert set(found.ids) == {i for i in whole.ids if "dog" in i}


def test_rows_of_a_table(project: Path, prepare: Prepare) -> None:
    image_folder(project / "p", {"a": 4})
    rows = "".join(f"p/a/{i:02d}.png,{name}\n" for i, name in enumerate(("cat", "dog", "cat", "owl")))
    (project / "pairs.csv").write_text("image,label\n" + rows)
    found = prepare(source("table", "owl", "cat", path="pairs.csv"))
    assert found.captions == ["a photo of a cat.", "a photo of a cat.", "a photo of a owl."]


def test_concepts_of_a_category(prepare: Prepare) -> None:
    whole = prepare("icons:food/new")
    some = whole.card.classes[3:5]
    found = prepare(source("icons", *some, category="food", concepts="new"))
    assert found.card.classes == some
    assert set(found.ids) == {i for i, label in zip(whole.ids, whole.labels, strict=True) if label in (3, 4)}


def test_a_class_that_is_not_there_is_named(project: Path, prepare: Prepare) -> None:
    image_folder(project / "photos", {"cat": 1, "dog": 1})
    with pytest.raises(UserError, match=r"images: photos: only names the class 'cow', and there is none of that name"):
        prepare(source("images", "cow", path="photos"))
    with pytest.raises(UserError, match=r"icons: food: only names the class 'dog'"):
        prepare(source("icons", "dog", category="food"))
