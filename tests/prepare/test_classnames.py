"""Class-name tables of test sets: open_clip's ImageNet, and files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest

from tasks.errors import UserError
from tasks.model.datasets import Dataset
from tasks.prepare import check
from tasks.prepare.classnames import ClassNames, renamed
from tests.prepare.conftest import evaluation, image_folder, params

Prepare = Callable[..., Dataset]


def test_imagenet_names_wordnet_ids_of_any_subset(prepare_test: Prepare, project: Path) -> None:
    image_folder(project / "some", {"n01443537": 2, "n02123045": 1, "n15075141": 1})
    data = prepare_test("images:some", classnames="imagenet")
    assert data.card.classes == ("goldfish", "tabby cat", "toilet paper")
    assert data.labels.tolist() == [0, 0, 1, 2]


def test_imagenet_names_numbers_as_numbers_not_in_the_order_of_their_digits(
    prepare_test: Prepare, project: Path
) -> None:
    image_folder(project / "some", {"2": 1, "10": 1, "999": 1})
    names = open_clip.IMAGENET_CLASSNAMES
    assert prepare_test("images:some", classnames="imagenet").card.classes == (names[10], names[2], names[999])


def test_imagenet_does_not_name_other_classes(prepare_test: Prepare, project: Path) -> None:
    image_folder(project / "some", {"goldfish": 1, "n02123045": 1})
    with pytest.raises(UserError, match="classnames imagenet has no name for 1 of 2 classes, such as 'goldfish'"):
        prepare_test("images:some", classnames="imagenet")


def test_two_classes_of_imagenet_may_have_one_name() -> None:
    table = ClassNames(origin="imagenet", by_class={"a": "missile", "b": "missile"})
    assert renamed(table, ["a", "b"], "set") == ("missile", "missile")


def test_a_file_of_lines_names_the_sorted_classes(prepare_test: Prepare, project: Path) -> None:
    image_folder(project / "some", {"b_x": 1, "a": 2})
    (project / "names.txt").write_text("an  ant\na bee\n\n")
    data = prepare_test("images:some", classnames="names.txt")
    assert (data.card.classes, data.labels.tolist()) == (("an ant", "a bee"), [0, 0, 1])
    assert data.captions[0] == "a photo of a a."


@pytest.mark.parametrize(
    ("content", "names"),
    [({"a": "an ant", "b": "a bee", "c": "unused"}, ("an ant", "a bee")), (["ant", "bee"], ("ant", "bee"))],
)
def test_a_json_file_names_classes_or_is_a_list(
    prepare_test: Prepare, project: Path, content: Any, names: tuple[str, ...]
) -> None:
    image_folder(project / "some", {"b": 1, "a": 1})
    (project / "names.json").write_text(json.dumps(content))
    assert prepare_test("images:some", classnames="names.json").card.classes == names


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["x"], "has 1 names, and there are 2 classes, such as 'a'"),
        (["b", "a"], "has 'a' on another line than its place among the sorted classes"),
        (["x", "x"], "calls several classes 'x'; rename one"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(prepare_test: Prepare, project: Path, lines: list[str], says: str) -> None:
    image_folder(project / "some", {"b": 1, "a": 1})
    (project / "names.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"evaluation set 'one': classnames names.txt {says}"):
        prepare_test("images:some", classnames="names.txt")


def test_numbers_beyond_the_list_are_refused() -> None:
    with pytest.raises(UserError, match="has 2 names, and there is a class 2"):
        renamed(ClassNames(origin="t", by_number=("x", "y")), ["0", "2"], "set")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.txt", None, "No such file or directory; name a file of class names, or imagenet"),
        ("empty.txt", b" \n", "holds no names"),
        ("latin.txt", b"caf\xe9", "is not UTF-8"),
        ("odd.json", b"{", "neither a JSON object"),
        ("odd.json", b'{"a": 3}', "neither a JSON object"),
        ("odd.json", b"3", "neither a JSON object"),
    ],
)
def test_a_file_that_is_no_table_is_refused_before_any_work(
    project: Path, name: str, content: bytes | None, says: str
) -> None:
    image_folder(project / "some", {"b": 1, "a": 1})
    if content is not None:
        (project / name).write_bytes(content)
    settings = params(evaluate=evaluation("images:some", classnames=name))
    with pytest.raises(UserError, match=f"evaluation set 'one': classnames {name}: .*{says}|{says}"):
        check(settings, project)


def test_pairs_have_no_classes_to_name(prepare_test: Prepare, project: Path) -> None:
    image_folder(project / "some", {"x": 2})
    (project / "t.csv").write_text("image,caption\nsome/x/00.png,one\nsome/x/01.png,two\n")
    (project / "names.txt").write_text("x\n")
    with pytest.raises(UserError, match="'one': classnames is for classes, and its samples have none"):
        prepare_test("table:t.csv", classnames="names.txt")
