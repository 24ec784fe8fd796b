"""A user's own images: folders, tables, WebDataset tars; splits; and every mistake by name."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.errors import UserError
from tasks.model.datasets import Dataset
from tasks.prepare import at_most, notes_on, tables
from tasks.prepare.image_source import ImageSource
from tasks.prepare.registry import parse
from tasks.prepare.splits import drawn
from tests import published
from tests.prepare.conftest import arrival, image_folder, params, picture

ROOT = Path(__file__).parents[2]
Prepare = Callable[..., Dataset]


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_tar(path: Path, samples: Sequence[dict[str, bytes]], start: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples, start=start):
            for extension, data in sample.items():
                member = tarfile.TarInfo(f"{number:04d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def pairs(data: Dataset) -> dict[str, str]:
    """Sample id → class name."""
    return {i: data.card.classes[label] for i, label in zip(data.ids, data.labels, strict=True)}


# --- images ---------------------------------------------------------------------------------------------------------


def test_an_image_that_vanishes_while_the_others_are_read_is_named(
    prepare: Prepare, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder(project / "photos", {"cat": 2, "dog": 2})
    read = ImageSource._examples

    def after_one_is_gone(self: ImageSource, *given: Any) -> Any:
        for path in project.rglob("dog/01.png"):
            path.unlink()
        return read(self, *given)

    monkeypatch.setattr(ImageSource, "_examples", after_one_is_gone)
    with pytest.raises(UserError, match=r"photos/dog/01\.png: cannot be read: No such file or directory"):
        prepare({"source": "images", "path": "photos"})


def test_an_image_folder(prepare: Prepare, project: Path) -> None:
    image_folder(project / "photos", {"dog": 2, "snow_leopard": 3, "cat": 1})
    (project / "photos/cat/notes.txt").write_text("not an image")
    (project / "photos/cat/.DS_Store").write_text("not for us")
    (project / "photos/.hidden").mkdir()
    data = prepare({"source": "images", "path": "photos", "licence": "CC0", "attribution": "me"})
    assert data.card.classes == ("cat", "dog", "snow leopard")
    assert Counter(pairs(data).values()) == {"cat": 1, "dog": 2, "snow leopard": 3}
    assert pairs(data)["photos/dog/01.png"] == "dog"
    assert data.captions[data.ids.index("photos/snow_leopard/00.png")] == "a photo of a snow leopard."
    assert data.card.prompt == "a photo of a {}."
    assert [(o.source, o.licence, o.attribution) for o in data.card.origins] == [("photos", "CC0", "me")]
    raw = [p for p in (project / "data/raw/arrival").rglob("*") if p.suffix == ".png"]
    assert len(raw) == 6
    assert all(p.stat().st_nlink == 1 for p in raw)


def test_odd_names_are_no_patterns(prepare: Prepare, project: Path) -> None:
    image_folder(project / "my photos [1]", {"a*b": 1, "c?": 1, "größe": 1})
    assert prepare("images:my photos [1]").card.classes == ("a*b", "c?", "größe")


def test_raw_files_are_enough(prepare: Prepare, project: Path) -> None:
    """The user's folder may change or go: what was fetched is what the state is made of."""
    from tasks.prepare import node

    image_folder(project / "photos", {"cat": 2, "dog": 2})
    data = prepare("images:photos#train")
    before = {p.name: p.read_bytes() for p in data.folder.iterdir()}
    shutil.rmtree(project / "photos")
    node.prepare_arrival(project, params(arrival=arrival("images:photos#train"), step=1))
    assert {p.name: p.read_bytes() for p in data.folder.iterdir()} == before


def test_drawn_splits(prepare: Prepare, prepare_test: Prepare, project: Path) -> None:
    image_folder(project / "photos", {"cat": 40, "dog": 40})
    train, test = pairs(prepare("images:photos#train")), pairs(prepare_test("images:photos#test"))
    assert not train.keys() & test.keys()
    assert len(train | test) == 80
    assert 5 <= len(test) <= 28  # 16 expected
    image_folder(project / "photos", {"owl": 40}, start=100)
    assert train.items() <= pairs(prepare("images:photos#train")).items()  # what is added moves nothing
    assert pairs(prepare("images:photos#train", seed=1)).keys() != train.keys()
    half = {"source": "images", "path": "photos", "split": "test", "fraction": 0.5}
    assert 40 <= len(prepare_test(half)) <= 80


@given(st.text(), st.integers(0, 2**31), st.floats(0.01, 0.5), st.floats(0.5, 0.99))
def test_a_larger_fraction_only_adds(name: str, seed: int, small: float, large: float) -> None:
    if drawn(name, seed, small) == "test":
        assert drawn(name, seed, large) == "test"


@pytest.mark.parametrize("test_name", ["test", "validation", "Val"])
def test_given_split_folders(prepare: Prepare, prepare_test: Prepare, project: Path, test_name: str) -> None:
    image_folder(project / "photos/train", {"cat": 3, "dog": 2})
    image_folder(project / "photos" / test_name, {"cat": 1, "dog": 1}, start=50)
    assert len(prepare("images:photos#train")) == 5
    assert set(prepare_test("images:photos#test").ids) == {
        f"photos/{test_name}/cat/00.png",
        f"photos/{test_name}/dog/00.png",
    }
    raw = list((project / "data/raw/evaluation").rglob("*.png"))
    assert len(raw) == 2  # the training part is not stored with the test
    with pytest.raises(UserError, match=f"has the parts train and {test_name}; pick one with #train or #test"):
        prepare("images:photos")


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # datasets leaves the file to the collector
def test_a_metadata_file_gives_captions(prepare: Prepare, project: Path) -> None:
    folder = project / "photos"
    image_folder(folder, {"in": 2})
    rows = [{"file_name": "in/00.png", "text": "a red cat"}, {"file_name": "in/01.png", "text": "a blue cat"}]
    write_csv(folder / "metadata.csv", rows)
    data = prepare("images:photos")
    assert data.captions[0] == "a red cat"
    assert (data.labels == -1).all()
    assert data.card.classes == ()
    gc.collect()


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda p: shutil.rmtree(p), "images: photos: no such file or folder"),
        (lambda p: (shutil.rmtree(p), p.write_text("")), "images: photos: not a folder"),
        (lambda p: (shutil.rmtree(p), p.mkdir()), "images: photos: holds no images"),
        (lambda p: (p / "owl").mkdir(), "images: photos/owl: the class folder holds no images"),
        (lambda p: shutil.copy(p / "cat/00.png", p / "1.png"), "photos/1.png: lies outside any class folder"),
        (lambda p: (p / "dog/00.png").write_bytes(b"\0\1"), "photos/dog/00.png: not an image"),
        (lambda p: (p / "dog/00.png").write_bytes(png(1)[:-50]), "photos/dog/00.png: the image cannot be decoded"),
        (lambda p: (p / "dog/00.png").write_bytes(b""), "photos/dog/00.png: not an image"),
    ],
)
def test_a_broken_folder(prepare: Prepare, project: Path, break_it: Callable[[Path], Any], words: str) -> None:
    break_it(image_folder(project / "photos", {"cat": 1, "dog": 1}))
    with pytest.raises(UserError) as caught:
        prepare("images:photos")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    left = [p.name for p in (project / "data").rglob("*") if "part" in p.name or p.name == "dataset.json"]
    assert left == []


# --- table ----------------------------------------------------------------------------------------------------------


def test_a_csv_of_paths_and_captions(prepare: Prepare, project: Path) -> None:
    image_folder(project / "shop/pictures", {"a": 3})
    picture(9).save(project / "outside.png")
    rows = [{"path": f"pictures/a/{i:02d}.png", "caption": f"product  {i}", "class": "shoe"} for i in range(3)]
    rows.append({"path": "../outside.png", "caption": "NA", "class": ""})
    rows.append({"path": str(project / "outside.png"), "caption": "", "class": "hat"})
    write_csv(project / "shop/pairs.csv", rows)
    data = prepare("table:shop/pairs.csv")
    assert data.captions == ["product 0", "product 1", "product 2", "NA", "a photo of a hat."]
    assert data.ids[0] == "shop/pairs.csv:1"
    assert list(data.labels) == [1, 1, 1, -1, 0]
    np.testing.assert_array_equal(data.images[3], data.images[4])


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_small_parquet_table_that_unpacks_to_much_is_refused(
    prepare: Prepare, project: Path, dictionary: bool
) -> None:
    (project / "t.parquet").write_bytes(published.bomb(400, dictionary=dictionary))
    with pytest.raises(UserError, match=r"t\.parquet: unpacks to more than 64 times its size"):
        prepare({"source": "table", "path": "t.parquet", "image": "image", "label": "label"})


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_table_format(prepare: Prepare, project: Path, form: str) -> None:
    image_folder(project / "t/x", {"a": 2})
    rows = [{"image": f"x/a/{i:02d}.png", "text": f"number {i}"} for i in range(2)]
    path = project / f"t/t.{form}"
    match form:
        case "csv":
            write_csv(path, rows)
        case "tsv":
            path.write_text("image\ttext\n" + "".join(f"{r['image']}\t{r['text']}\n" for r in rows))
        case "jsonl":
            path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        case "parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    assert prepare(f"table:t/t.{form}").captions == ["number 0", "number 1"]


@pytest.mark.parametrize("shape", ["bytes", "struct"])
def test_parquet_with_the_images_inside(prepare: Prepare, project: Path, shape: str) -> None:
    images = [png(i) if shape == "bytes" else {"bytes": png(i), "path": None} for i in range(4)]
    table = pa.Table.from_pylist([{"image": image, "label": i % 2} for i, image in enumerate(images)])
    pyarrow.parquet.write_table(table, project / "t.parquet")
    data = prepare({"source": "table", "path": "t.parquet", "classes": ["cat", "dog"]})
    assert [data.card.classes[label] for label in data.labels] == ["cat", "dog", "cat", "dog"]
    assert len(np.unique(data.images.reshape(4, -1), axis=0)) == 4
    assert [p.suffix for p in (project / "data/raw/arrival").rglob("*") if p.is_file()].count(".parquet") == 1


def test_parquet_with_paths_beside_no_bytes_and_several_captions(prepare: Prepare, project: Path) -> None:
    image_folder(project / "x", {"a": 2})
    rows = [{"image": {"bytes": None, "path": f"x/a/{i:02d}.png"}, "captions": ["one", "", "two"]} for i in range(2)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), project / "t.parquet")
    data = prepare("table:t.parquet")
    assert data.captions == ["one", "two"] * 2
    assert data.ids == [f"t.parquet:{row}#{caption}" for row in (1, 2) for caption in (1, 2)]
    assert len(list((project / "data/raw/arrival").rglob("*.png"))) == 2


def test_a_parquet_table_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.packaged_modules.parquet.parquet import Parquet

    read: list[list[int]] = []
    own = pyarrow.parquet.ParquetFile.iter_batches

    def counting(file: Any, rows: int, *, row_groups: list[int], columns: list[str] | None) -> Any:
        read.append(row_groups)
        return own(file, rows, row_groups=row_groups, columns=columns)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", counting)
    monkeypatch.delattr(Parquet, "_generate_tables")
    table = pa.Table.from_pylist([{"image": png(i), "caption": "a"} for i in range(4)])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    assert len(tables.load([tmp_path / "t.parquet"], tmp_path, "t", 100)) == 4
    assert read == [[0], [1]]


def test_class_names_that_a_hugging_face_data_set_brings(prepare: Prepare, project: Path) -> None:
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"img": [{"bytes": png(i), "path": None} for i in range(3)], "label": [1, 0, 1]}
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.disable_progress_bars()
    table.to_parquet(project / "t.parquet")
    assert list(pairs(prepare("table:t.parquet")).values()) == ["yes", "no", "yes"]


def test_given_splits_of_tables(prepare: Prepare, prepare_test: Prepare, project: Path) -> None:
    image_folder(project / "t/x", {"a": 6})
    rows = [{"image": f"x/a/{i:02d}.png", "text": str(i) + "!", "split": "train" if i else "test"} for i in range(6)]
    write_csv(project / "t/t.csv", rows)
    assert len(prepare("table:t/t.csv#train")) == 5
    with pytest.raises(UserError, match="has the parts train and test; pick one"):
        prepare("table:t/t.csv")
    image_folder(project / "u/x", {"a": 3})
    for name, numbers in (("train-0", [0]), ("train-1", [1]), ("test-0", [2])):
        found = [{"image": f"x/a/{i:02d}.png", "label": f"c{i}"} for i in numbers]
        write_csv(project / f"u/{name}.csv", found)
    assert prepare("table:u#train").card.classes == ("c0", "c1")
    assert prepare_test("table:u#test").card.classes == ("c2",)


def test_rows_of_one_image_fall_on_one_side(prepare: Prepare, project: Path) -> None:
    image_folder(project / "t/x", {"a": 20})
    rows = [{"image": f"x/a/{i % 20:02d}.png", "text": f"image {i % 20} said {i // 20}"} for i in range(60)]
    write_csv(project / "t/t.csv", rows)
    sides = [{c.split(" said")[0] for c in prepare(f"table:t/t.csv#{s}").captions} for s in ("train", "test")]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 20


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([{"image": "no.png", "text": "x"}], {}, "names the image 'no.png', and there is no such file"),
        ([{"picture": "a/00.png", "text": "x"}], {}, "no column of images among picture, text; name it with image"),
        ([{"image": "a/00.png", "text": "x"}], {"image": "pic"}, "no column 'pic'; there are image, text"),
        ([{"image": "a/00.png", "text": "x"}], {"caption": "cap"}, "no column 'cap'; there are image, text"),
        ([{"image": "a/00.png", "other": "x"}], {}, "t/t.csv:1: has neither a caption nor a class"),
        ([{"image": "a/00.png", "label": 3}], {}, "column 'label' holds numbers; give their names"),
        ([{"image": "a/00.png", "label": 3}], {"classes": ["x"]}, "holds 3, but there are 1 classes"),
        ([{"image": "a/00.png", "text": "x"}, {"image": "", "text": "x"}], {}, "t/t.csv:2: has no image"),
        ([{"image": "a/00.png", "text": 0.5}], {}, "holds 0.5, which is neither text nor a whole number"),
    ],
)
def test_a_broken_table(
    prepare: Prepare, project: Path, rows: list[dict[str, Any]], settings: dict[str, Any], words: str
) -> None:
    image_folder(project / "t", {"a": 1})
    write_csv(project / "t/t.csv", rows)
    with pytest.raises(UserError) as caught:
        prepare({"source": "table", "path": "t/t.csv", **settings})
    assert words in str(caught.value)


def test_broken_table_files(prepare: Prepare, project: Path) -> None:
    (project / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"table: t\.parquet: is no readable Parquet file "):
        prepare("table:t.parquet")
    (project / "t.csv").write_text("")
    with pytest.raises(UserError, match=r"table: t\.csv: cannot be read as csv: "):
        prepare("table:t.csv")
    (project / "t.csv").write_bytes(b"image,text\n\xff\xfe,x\n")
    with pytest.raises(UserError, match=r"table: t\.csv: cannot be read as csv: "):
        prepare("table:t.csv")
    (project / "t.xlsx").write_text("")
    with pytest.raises(UserError, match=r"table: t\.xlsx: no table there; \.csv, \.tsv"):
        prepare("table:t.xlsx")
    (project / "both").mkdir()
    (project / "both/a.csv").write_text("a\n1\n")
    (project / "both/b.tsv").write_text("a\n1\n")
    with pytest.raises(UserError, match="several formats; name one file"):
        prepare("table:both")


# --- webdataset -----------------------------------------------------------------------------------------------------


def test_webdataset_tars(prepare: Prepare, prepare_test: Prepare, project: Path) -> None:
    folder = project / "tars"
    write_tar(folder / "train-0000.tar", [{"png": png(i), "txt": f"caption {i}\n".encode()} for i in range(8)])
    write_tar(folder / "train-0001.tar", [{"png": png(8), "txt": b"caption 8"}], start=8)
    write_tar(folder / "test-0000.tar", [{"png": png(9), "cls": b"cat"}, {"png": png(10), "cls": b"dog"}])
    data = prepare("webdataset:tars#train")
    assert data.captions == [f"caption {i}" for i in range(9)]
    assert data.ids[0] == "tars:train-0000.tar/0000"
    assert prepare_test("webdataset:tars#test").card.classes == ("cat", "dog")
    one = prepare("webdataset:tars/test-0000.tar")
    assert one.ids == ["tars/test-0000.tar:test-0000.tar/0000", "tars/test-0000.tar:test-0000.tar/0001"]


def test_webdataset_numbers_and_json(prepare: Prepare, project: Path) -> None:
    write_tar(project / "a.tar", [{"jpg": png(0), "cls": b"1"}, {"jpg": png(1), "cls": b"0"}])
    data = prepare({"source": "webdataset", "path": "a.tar", "classes": ["cat", "dog"]})
    assert list(pairs(data).values()) == ["dog", "cat"]
    content = [json.dumps({"caption": f"c{i}", "label": "owl"}).encode() for i in range(2)]
    write_tar(project / "b.tar", [{"png": png(i), "json": content[i]} for i in range(2)])
    data = prepare("webdataset:b.tar")
    assert data.captions == ["c0", "c1"]
    assert data.card.classes == ("owl",)


def test_webdataset_members_are_never_run_or_unpacked(prepare: Prepare, project: Path, tmp_path: Path) -> None:
    import pickle

    class TarTrap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    trap = pickle.dumps(TarTrap())
    write_tar(project / "a.tar", [{"png": png(0), "txt": b"x", "pyd": trap, "pickle": trap, "pth": trap}])
    assert prepare("webdataset:a.tar").captions == ["x"]
    assert not (tmp_path / "sprung").exists()
    with tarfile.open(project / "b.tar", "w") as tar:
        for name, data in (("../../escaped.png", png(0)), ("../../escaped.txt", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    prepare("webdataset:b.tar")
    assert not list(project.rglob("*escaped*"))
    assert not list(project.parent.glob("*escaped*"))


def test_broken_tars(prepare: Prepare, project: Path) -> None:
    path = write_tar(project / "a.tar", [{"png": png(i), "txt": b"x"} for i in range(4)])
    whole = path.read_bytes()
    used = whole.rstrip(b"\0")
    for keep in (700, 1024, len(used) // 2, len(used) - 600, len(used)):
        path.write_bytes(whole[:keep])
        with pytest.raises(UserError, match=r"webdataset: a\.tar: a\.tar is (damaged or no tar file|cut off)"):
            prepare("webdataset:a.tar")
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match=r"webdataset: a\.tar: a\.tar is damaged or no tar file"):
        prepare("webdataset:a.tar")
    write_tar(path, [{"txt": b"x"}])
    with pytest.raises(UserError, match="its samples have no images"):
        prepare("webdataset:a.tar")
    write_tar(path, [{"png": png(0), "txt": b"x"}, {"txt": b"x"}])
    with pytest.raises(UserError):
        prepare("webdataset:a.tar")
    write_tar(path, [{"png": png(0), "txt": b"x"}, {"png": b"broken", "txt": b"x"}])
    with pytest.raises(UserError, match=r"a\.tar/0001: not an image"):
        prepare("webdataset:a.tar")
    (project / "none").mkdir()
    with pytest.raises(UserError, match=r"no \.tar file there"):
        prepare("webdataset:none")


# --- all ------------------------------------------------------------------------------------------------------------


def test_sources_together(prepare: Prepare, project: Path) -> None:
    """Classes of one name are one class, wherever they come from."""
    image_folder(project / "a", {"cat": 1, "dog": 1})
    image_folder(project / "b", {"cat": 2, "emu": 1}, start=30)
    data = prepare("images:a", "images:b")
    assert data.card.classes == ("cat", "dog", "emu")
    assert Counter(pairs(data).values()) == {"cat": 3, "dog": 1, "emu": 1}


def test_prompts_of_test_sets(prepare_test: Prepare, project: Path) -> None:
    image_folder(project / "a", {"cat": 1})
    drawings = {"source": "images", "path": "a", "template": "a drawing of a {}."}
    assert prepare_test("images:a", prompt="this is a {}").card.prompt == "this is a {}"
    assert prepare_test(drawings).card.prompt == "a drawing of a {}."
    image_folder(project / "b", {"cat": 1})
    with pytest.raises(UserError, match="its sources' prompts differ"):
        prepare_test(drawings, "images:b")


def test_a_test_set_has_classes_for_all_or_for_none(prepare_test: Prepare, project: Path) -> None:
    image_folder(project / "x", {"a": 2})
    write_csv(project / "t.csv", [{"image": f"x/a/{i:02d}.png", "text": f"caption {i}"} for i in range(2)])
    data = prepare_test("table:t.csv")
    assert (data.card.classes, data.captions, list(data.labels)) == ((), ["caption 0", "caption 1"], [-1, -1])
    before = {path.name: path.read_bytes() for path in data.folder.iterdir()}
    with pytest.raises(UserError, match=r"evaluation set 'one': sample 't\.csv:1' has no class, and others have"):
        prepare_test("images:x", "table:t.csv")
    with pytest.raises(UserError, match=r"'one': prompt is for classes, and its samples have none; .*with label"):
        prepare_test("table:t.csv", prompt="a {}")
    assert {path.name: path.read_bytes() for path in data.folder.iterdir()} == before  # nothing half-written


def test_a_split_without_samples(prepare: Prepare, project: Path) -> None:
    image_folder(project / "a", {"cat": 1})
    side = "train" if drawn("a/cat/00.png", 0, 0.2) == "test" else "test"
    with pytest.raises(UserError, match="data set 'new' is empty"):
        prepare(f"images:a#{side}")


@pytest.mark.parametrize("kind", ["images:photos", "table:t.csv", "webdataset:a.tar"])
def test_another_process_makes_the_same_bytes_and_leaves_home_alone(prepare: Prepare, project: Path, kind: str) -> None:
    image_folder(project / "photos", {"cat": 3, "dog": 3})
    write_csv(project / "t.csv", [{"image": f"photos/cat/{i:02d}.png", "text": f"n{i}"} for i in range(3)])
    write_tar(project / "a.tar", [{"png": png(i), "txt": b"x"} for i in range(3)])
    data = prepare(kind)
    before = {p.name: p.read_bytes() for p in data.folder.iterdir()}
    content = json.loads(params(arrival=arrival(kind), step=1).model_dump_json(exclude_none=True))
    (project / "params.yaml").write_text(json.dumps(content))
    home = project / "home"
    home.mkdir()
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "tasks", "prepare"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert {p.name: p.read_bytes() for p in data.folder.iterdir()} == before
    assert list(home.rglob("*")) == []
    left = {p.name for p in (project / "data/step").iterdir()}
    assert left == {"arrival"}


def test_a_large_photograph(prepare: Prepare, project: Path) -> None:
    (project / "photos/cat").mkdir(parents=True)
    Image.new("RGB", (3000, 2000), (10, 200, 30)).save(project / "photos/cat/1.jpg")
    assert abs(prepare("images:photos").images[0].astype(int) - [10, 200, 30]).max() <= 3


# --- parts and shares -----------------------------------------------------------------------------------------------


def drawn_notes(project: Path) -> list[str]:
    return notes_on(project / "data/raw/arrival")


def test_a_train_part_alone_is_read_in_full(prepare: Prepare, project: Path) -> None:
    """As Hugging Face writes a data set without a test part."""
    image_folder(project / "d/train", {"cat": 20, "dog": 20})
    (project / "t").mkdir()
    (project / "tars").mkdir()
    rows = [{"image": f"../d/train/cat/{i:02d}.png", "text": f"n{i}"} for i in range(6)]
    write_csv(project / "t/train-00000-of-00001.csv", rows)
    write_csv(project / "s.csv", [{**row, "image": row["image"][3:], "split": "train"} for row in rows])
    write_tar(project / "tars/train-0.tar", [{"png": png(i), "txt": b"x"} for i in range(6)])
    for source, count in (("images:d", 40), ("table:t", 6), ("table:s.csv", 6), ("webdataset:tars", 6)):
        assert len(prepare(f"{source}#train")) == count
        assert drawn_notes(project) == []
        assert len(prepare(source)) == count
        with pytest.raises(UserError, match=r"has the part train and no test part; .*#train\[:80%\]"):
            prepare(f"{source}#test")


def test_a_drawn_share_is_noted(prepare: Prepare, project: Path) -> None:
    image_folder(project / "photos", {"cat": 20, "dog": 20})
    count = len(prepare("images:photos#train"))
    assert drawn_notes(project) == [
        f"images: photos: it comes without a train and a test part, so #train is a drawn share: {count} of 40 samples"
    ]
    assert len(prepare("images:photos#train[:80%]")) == count
    assert drawn_notes(project) == [f"images: photos: [:80%] of all of it: {count} of 40 samples"]


@pytest.mark.parametrize("edge", ["80%", "50%", "12.5%"])
def test_two_shares_are_all_of_a_part(prepare: Prepare, project: Path, edge: str) -> None:
    image_folder(project / "d/train", {"cat": 30, "dog": 30})
    image_folder(project / "d/test", {"cat": 2, "dog": 2}, start=90)
    below, above = (set(prepare(f"images:d#train[{share}]").ids) for share in (f":{edge}", f"{edge}:"))
    assert not below & above
    assert len(below | above) == 60
    assert abs(len(below) / 60 - float(edge[:-1]) / 100) < 0.2


def test_a_share_agrees_with_the_drawn_parts(prepare: Prepare, project: Path) -> None:
    image_folder(project / "p", {"cat": 20, "dog": 20})
    assert prepare("images:p#train").ids == prepare("images:p#train[:80%]").ids
    assert prepare("images:p#test").ids == prepare("images:p#train[80%:]").ids
    assert prepare("images:p#test").ids == prepare({"source": "images", "path": "p", "share": "80%:"}).ids
    with pytest.raises(UserError, match=r"has no test part; draw one from all of it with #train\[80%:\]"):
        prepare("images:p#test[:50%]")


@pytest.mark.parametrize("share", ["[:120%]", "[50%:20%]", "[:80]", "[80%]", "[a:b]", "[:0%]", "[]"])
def test_a_wrong_share_is_named(share: str) -> None:
    with pytest.raises(UserError, match=r"share: a share (is written|goes from)"):
        parse(f"images:p#train{share}", "x")


def test_dev_is_a_test_part_and_other_folders_are_counted(
    prepare: Prepare, prepare_test: Prepare, project: Path
) -> None:
    image_folder(project / "d/train", {"cat": 3})
    image_folder(project / "d/dev", {"cat": 2}, start=20)
    with pytest.raises(UserError, match="has the parts train and dev; pick one"):
        prepare("images:d")
    image_folder(project / "d/extra", {"cat": 4}, start=30)
    assert len(prepare("images:d#train")) == 3
    assert drawn_notes(project) == ["images: d: left out: 4 .png"]
    assert len(prepare_test("images:d#test")) == 2
    shutil.rmtree(project / "d/dev")
    with pytest.raises(UserError, match="has the part train, and beside it the folders extra"):
        prepare("images:d#train")


@pytest.mark.parametrize("names", [("train2017", "val2017"), ("train_set", "test_set"), ("train", "my-test")])
def test_what_is_probably_two_parts_is_not_read_as_one_set(
    prepare: Prepare, project: Path, names: tuple[str, str]
) -> None:
    """Else ``#test`` would draw from what is trained on, and without it the test part would be trained on."""
    for start, name in enumerate(names):
        image_folder(project / "d" / name, {"cat": 3, "dog": 3}, start=9 * start)
        rows = [{"image": f"../d/{name}/cat/{i:02d}.png", "text": f"n{i}"} for i in range(3)]
        write_csv(project / f"t/all_{name}.csv", rows)
        write_tar(project / f"tars/all-{name}.tar", [{"png": png(i), "txt": b"x"} for i in range(3)])
    first, second = names
    for source in ("images:d", "table:t", "webdataset:tars"):
        for part in ("", "#train", "#test"):
            with pytest.raises(
                UserError, match=rf"{first}.* and .*{second}.* are probably a train part and a test part"
            ):
                prepare(source + part)
    assert len(prepare(f"images:d/{first}", f"images:d/{second}")) == 12
    assert prepare({"source": "images", "path": "d", "class_level": "last"}).card.classes == ("cat", "dog")


def test_classes_may_have_words_for_parts_in_their_names(prepare: Prepare, project: Path) -> None:
    image_folder(project / "d", {"test_tube": 2, "train_station": 3})
    assert prepare("images:d").card.classes == ("test tube", "train station")
    assert len(prepare("images:d#train")) + len(prepare("images:d#test")) == 5


def test_metadata_has_parts_in_a_column(prepare: Prepare, prepare_test: Prepare, project: Path) -> None:
    image_folder(project / "d", {"a": 6})
    splits = ["train", "train", "train", "test", "test", "extra"]
    rows = [{"file_name": f"a/{i:02d}.png", "text": f"n{i}", "split": split} for i, split in enumerate(splits)]
    write_csv(project / "d/metadata.csv", rows)
    assert list(prepare("images:d#train").captions) == ["n0", "n1", "n2"]
    assert drawn_notes(project) == ["images: d: left out: 1 rows whose split is 'extra'"]
    assert list(prepare_test("images:d#test").captions) == ["n3", "n4"]
    with pytest.raises(UserError, match="has the parts train and test; pick one"):
        prepare("images:d")


@pytest.mark.parametrize("source", ["images:d", "table:d/metadata.csv"])
def test_a_column_of_parts_with_other_words_is_refused(prepare: Prepare, project: Path, source: str) -> None:
    image_folder(project / "d", {"a": 4})
    rows = [{"file_name": f"a/{i:02d}.png", "text": "x", "split": i % 2} for i in range(4)]
    write_csv(project / "d/metadata.csv", rows)
    assert len(prepare(source)) == 4
    with pytest.raises(
        UserError, match=r"has a column of parts and no test part in it, only '0', '1'; write train and"
    ):
        prepare(f"{source}#test")


def test_a_class_may_be_called_train(prepare: Prepare, project: Path) -> None:
    image_folder(project / "vehicles", {"bus": 2, "train": 3})
    assert Counter(pairs(prepare("images:vehicles")).values()) == {"bus": 2, "train": 3}
    image_folder(project / "one", {"train": 3})
    assert prepare("images:one").card.classes == ("train",)


def test_rows_of_another_split_are_counted(prepare: Prepare, project: Path) -> None:
    image_folder(project / "x", {"a": 6})
    splits = ["train", "train", "val", "extra", "extra", ""]
    write_csv(project / "t.csv", [{"image": f"x/a/{i:02d}.png", "text": "x", "split": s} for i, s in enumerate(splits)])
    assert len(prepare("table:t.csv#train")) == 2
    assert drawn_notes(project) == [
        "table: t.csv: left out: 2 rows whose split is 'extra'",
        "table: t.csv: left out: 1 rows whose split is None",
    ]


def test_the_largest_number_of_samples_is_known_of_folders_alone(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos", {"cat": 3, "dog": 2})
    images = len([file for file in folder.rglob("*") if file.is_file()])
    assert at_most(["images:photos"], "here", tmp_path) == images
    assert at_most(["images:photos", "images:photos"], "here", tmp_path) == 2 * images
    (folder / "metadata.csv").write_text("file_name,caption\n")
    assert at_most(["images:photos"], "here", tmp_path) is None
    assert at_most(["images:photos", "icons:food"], "here", tmp_path) is None
    assert at_most([], "here", tmp_path) == 0


def test_the_largest_number_of_samples_is_known_of_tables_and_plain_tars(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "text": "a\nb"} for i in range(3)]
    write_csv(tmp_path / "t.csv", rows)
    assert at_most(["table:t.csv"], "here", tmp_path) == 6  # a line at most holds one row
    for end in ("\n", "\r", "\r\n"):
        (tmp_path / "u.tsv").write_bytes(end.join(["image\ttext", "0.png\ta", "1.png\tb"]).encode())
        assert at_most(["table:u.tsv"], "here", tmp_path) == 2
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "t.jsonl").write_text(lines)
    (tmp_path / "list.jsonl").write_text(json.dumps(rows))
    assert at_most(["table:t.jsonl"], "here", tmp_path) == 3
    assert at_most(["table:list.jsonl"], "here", tmp_path) is None
    pa.parquet.write_table(pa.table({"image": [b"x"] * 5, "caption": ["a"] * 5}), tmp_path / "t.parquet")
    assert at_most(["table:t.parquet", "table:t.jsonl"], "here", tmp_path) == 8
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"table: bad\.parquet: bad\.parquet is no readable Parquet file"):
        at_most(["table:bad.parquet"], "here", tmp_path)
    with tarfile.open(tmp_path / "t.tar", "w") as plain, tarfile.open(tmp_path / "z.tar.gz", "w:gz") as packed:
        for name in ("0.png", "0.txt", "1.png", "1.txt"):
            plain.addfile(tarfile.TarInfo(name))
            packed.addfile(tarfile.TarInfo(name))
    assert at_most(["webdataset:t.tar"], "here", tmp_path) == 2
    assert at_most(["webdataset:z.tar.gz"], "here", tmp_path) is None


# --- names of class folders -------------------------------------------------------------------------------------------


def test_numbered_folders_count_into_classes_by_number_not_by_their_order(prepare: Prepare, project: Path) -> None:
    image_folder(project / "digits", {str(number): 1 for number in range(12)})
    names = [f"name {number}" for number in range(12)]
    data = prepare({"source": "images", "path": "digits", "classes": names})
    of_folder = {
        Path(one).parent.name: data.card.classes[label] for one, label in zip(data.ids, data.labels, strict=True)
    }
    assert of_folder == {str(number): f"name {number}" for number in range(12)}
    with pytest.raises(UserError, match="holds 11, but there are 11 classes"):
        prepare({"source": "images", "path": "digits", "classes": names[:-1]})


def test_numbered_folders_without_names_are_said(prepare: Prepare, project: Path) -> None:
    image_folder(project / "digits", {"0": 1, "1": 1})
    assert prepare("images:digits").card.classes == ("0", "1")
    assert "its class folders are numbers (0, 1)" in notes_on(project / "data/raw/arrival")[0]


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["a", "b", "c"], "classes has 3 names, and there are 2 class folders (cat, dog)"),
        (["a"], "classes has 1 names, and there are 2 class folders"),
        (["dog", "cat"], "classes has 'cat' at another place than the folder of that name"),
    ],
)
def test_names_that_do_not_fit_the_class_folders_are_refused(
    prepare: Prepare, project: Path, classes: list[str], words: str
) -> None:
    image_folder(project / "pets", {"cat": 1, "dog": 1})
    with pytest.raises(UserError) as caught:
        prepare({"source": "images", "path": "pets", "classes": classes})
    assert words in str(caught.value)
    data = prepare({"source": "images", "path": "pets", "classes": ["a cat", "a dog"]})
    assert pairs(data) == {"pets/cat/00.png": "a cat", "pets/dog/00.png": "a dog"}


def test_classes_that_differ_by_case_or_space_alone_are_said(prepare: Prepare, project: Path) -> None:
    image_folder(project / "pets", {"cat": 1, "Cat": 1, "red_fox": 1, "red fox ": 1, "dog": 1})
    assert len(prepare("images:pets").card.classes) == 5
    (note,) = notes_on(project / "data/raw/arrival")
    assert note.endswith("are classes of their own: 'Cat' and 'cat'; 'red fox' and 'red fox '")


def test_one_folder_name_for_all_images_is_no_class(prepare: Prepare, project: Path) -> None:
    for first in ("cat", "dog"):
        image_folder(project / "pets" / first, {"images": 2})
    with pytest.raises(
        UserError, match=r"all images lie in folders called 'images', in cat, dog: .*class_level: first"
    ):
        prepare("images:pets")
    source = {"source": "images", "path": "pets"}
    assert prepare({**source, "class_level": "first"}).card.classes == ("cat", "dog")
    assert prepare({**source, "class_level": "last"}).card.classes == ("images",)


def test_classes_in_folders_of_several_others_are_said(prepare: Prepare, project: Path) -> None:
    for first in ("cat", "dog"):
        image_folder(project / "pets" / first, {"young": 1, "old": 1, f"{first}s": 1})
    assert prepare("images:pets").card.classes == ("cats", "dogs", "old", "young")
    (note,) = notes_on(project / "data/raw/arrival")
    assert "2 of 4 classes are folders in several others ('old' in cat, dog)" in note
    prepare({"source": "images", "path": "pets", "class_level": "first"})
    assert notes_on(project / "data/raw/arrival") == []
