"""Source specifications: both forms, and every mistake one readable sentence."""

from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.prepare import check
from tasks.prepare.registry import kinds, parse
from tests.prepare.conftest import evaluation, image_folder, params


def test_every_file_in_sources_is_a_kind() -> None:
    assert set(kinds()) == {
        "clip-benchmark",
        "fomo",
        "fomo-tar",
        "hf",
        "icons",
        "images",
        "table",
        "torchvision",
        "webdataset",
    }


@pytest.mark.parametrize(
    ("short", "mapping"),
    [
        ("icons:food", {"category": "food"}),
        ("icons:food/new", {"category": ["food"], "concepts": "new"}),
        ("icons:food+travel/base/test", {"category": ["food", "travel"], "concepts": "base", "styles": "test"}),
        ("icons:food/noto/fxemoji", {"category": "food", "styles": ["noto", "fxemoji"]}),
        ("images:a/b c", {"path": "a/b c"}),
        ("images:photos#test", {"path": "photos", "split": "test"}),
        ("table:pairs.csv#train", {"path": "pairs.csv", "split": "train"}),
    ],
)
def test_short_and_mapping_form_mean_the_same(short: str, mapping: dict[str, Any]) -> None:
    kind = short.partition(":")[0]
    assert parse(short, "x") == parse({"source": kind, **mapping}, "x")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("food", ["not of the form kind:what"]),
        ("icons:", ["not of the form kind:what"]),
        ({"source": ["table"], "path": "x"}, ["unknown source ['table']"]),
        (
            "pictures:food",
            ["unknown source 'pictures'", "clip-benchmark, fomo, fomo-tar, hf, icons, images, table"],
        ),
        ({"category": "food"}, ["lacks the key source"]),
        ({"source": "icons"}, ["category is missing"]),
        (
            {"source": "icons", "category": "food", "style": "noto"},
            ["unknown key style", "accepts only, category, concepts"],
        ),
        ("icons:fod", ["unknown category 'fod'", "activities, flags, food"]),
        ("icons:food/nwe", ["unknown word 'nwe'", "base, new"]),
        ({"source": "icons", "category": "food", "styles": "notto"}, ["unknown style 'notto'", "noto, noto-v1"]),
        ({"source": "icons", "category": []}, ["expected a category or a list"]),
        ("icons:food+food", ["named twice"]),
        ({"source": "icons", "category": "food", "concepts": "old"}, ["concepts", "'all', 'base' or 'new'"]),
        ("images:photos#tset", ["split", "'train' or 'test'"]),
        ({"source": "images", "path": "x", "fraction": 1.5}, ["fraction", "less than 1"]),
        ({"source": "images", "path": "x", "template": "a photo"}, ["template", "must hold {} once"]),
    ],
)
def test_a_wrong_specification_says_where_and_what_is_accepted(spec: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check(params(stream=[{"name": "new", "update": [spec]}]))
    message = str(caught.value)
    assert message.startswith("stream: arrival new: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_all_sections_are_checked(tmp_path: Path) -> None:
    base = {"model": "m.json", "pretrained": "b.safetensors", "pretraining": ["icons:fod"]}
    with pytest.raises(UserError, match=r"^base\.pretraining: "):
        check(params(base=base), tmp_path)
    with pytest.raises(UserError, match=r"^evaluate\.adaptation: one: "):
        check(params(evaluate=evaluation("icons:fod")), tmp_path)
    with pytest.raises(UserError, match="images: photos: no such file or folder"):
        check(params(stream=[{"name": "new", "update": ["images:photos"]}]), tmp_path)
    with pytest.raises(UserError, match=r"expert there\.safetensors: no such file"):
        check(params(stream=[{"name": "new", "expert": "there.safetensors"}]), tmp_path)
    with pytest.raises(UserError, match="not of the form s3://BUCKET/KEY"):
        check(params(stream=[{"name": "new", "expert": "s3://bucket"}]), tmp_path)
    image_folder(tmp_path / "photos", {"cat": 1, "dog": 1})
    check(params(stream=[{"name": "new", "update": ["images:photos"]}]), tmp_path)
