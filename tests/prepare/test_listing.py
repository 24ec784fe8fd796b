"""Every file of a source is read, refused, or counted in a note."""

from __future__ import annotations

import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.model.datasets import Dataset
from tasks.prepare import listing, notes_on
from tests.prepare.conftest import image_folder, picture

Prepare = Callable[..., Dataset]


@pytest.fixture
def photos(project: Path) -> Path:
    return image_folder(project / "photos", {"cat": 3, "dog": 3})


def notes(project: Path) -> list[str]:
    return notes_on(project / "data/raw/arrival")


def classes(data: Dataset) -> Counter[str]:
    return Counter(data.card.classes[label] for label in data.labels)


def test_what_is_left_out_is_counted_by_extension(prepare: Prepare, project: Path, photos: Path) -> None:
    for name in ("a.svg", "b.SVG", "c.pdf", "picture"):
        (photos / "cat" / name).write_bytes(b"x")
    for name in (".hidden.png", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (photos / "cat" / name).write_bytes(b"x")
    (photos / "__MACOSX").mkdir()
    (photos / "__MACOSX/x.png").write_bytes(b"x")
    assert len(prepare("images:photos")) == 6
    assert notes(project) == ["images: photos: left out: 2 .svg, 1 .pdf, 1 without extension"]


def test_nothing_left_out_is_no_note(prepare: Prepare, project: Path, photos: Path) -> None:
    prepare("images:photos")
    assert not (project / "data/raw/arrival/notes.json").exists()
    assert photos.exists()


@pytest.mark.parametrize("extension", ["jfif", "jpe", "JPG", "avif", "webp", "Tiff"])
def test_image_extensions(prepare: Prepare, photos: Path, extension: str) -> None:
    form = {"avif": "AVIF", "webp": "WEBP", "Tiff": "TIFF"}.get(extension, "JPEG")
    picture(9).save(photos / f"cat/new.{extension}", form)
    assert len(prepare("images:photos")) == 7


def test_heic_is_read_where_its_reader_is_installed(
    prepare: Prepare, project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    picture(9).save(photos / "cat/new.HEIC", "HEIF")
    assert len(prepare("images:photos")) == 7
    monkeypatch.setattr(listing, "image_extensions", lambda: listing.EXTENSIONS)
    assert len(prepare("images:photos")) == 6
    assert "left out: 1 .heic; .heic and .heif are read once pillow-heif is installed" in notes(project)[0]


def test_links_to_folders_are_followed(prepare: Prepare, project: Path, photos: Path) -> None:
    owls = image_folder(project / "elsewhere", {"owls": 4}, start=30) / "owls"
    (photos / "owl").symlink_to(owls)
    (photos / "cat/link.png").symlink_to(owls / "00.png")
    assert classes(prepare("images:photos")) == {"cat": 4, "dog": 3, "owl": 4}


def test_a_link_that_leads_back_is_named(prepare: Prepare, photos: Path) -> None:
    (photos / "cat/again").symlink_to(photos)
    with pytest.raises(UserError, match=r"photos/cat/again: is a link to a folder that it lies in; remove it"):
        prepare("images:photos")


@pytest.mark.parametrize("kind", ["FIFO", "socket", "folder", "link to nothing"])
def test_what_is_no_regular_file_is_refused_by_name(
    prepare: Prepare, photos: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos / "cat")  # a socket's path is short
    if kind == "FIFO":
        os.mkfifo("p.png")
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind("p.png")
    elif kind == "folder":
        Path("p.png").mkdir()
        shutil.copy("00.png", "p.png/x.png")
    else:
        Path("p.png").symlink_to("nowhere")
    words = "different depths" if kind == "folder" else rf"photos/cat/p\.png: is a {kind}"
    with pytest.raises(UserError, match=words):
        prepare("images:photos")


def test_a_name_that_is_not_utf8_is_refused(prepare: Prepare, photos: Path) -> None:
    shutil.copy(photos / "cat/00.png", os.fsencode(photos / "cat") + b"/caf\xe9.png")
    with pytest.raises(UserError, match=r"photos/cat/caf.*: its name is not UTF-8; rename it"):
        prepare("images:photos")


def test_images_at_different_depths_want_a_level(prepare: Prepare, photos: Path) -> None:
    image_folder(photos / "cat", {"tag_1": 2}, start=40)
    with pytest.raises(UserError, match="images lie at different depths") as caught:
        prepare("images:photos")
    assert "photos/cat/00.png and photos/cat/tag_1/00.png" in str(caught.value)
    assert "'cat' with class_level: first, and 'tag 1' with class_level: last" in str(caught.value)
    spec: dict[str, Any] = {"source": "images", "path": "photos"}
    assert classes(prepare({**spec, "class_level": "first"})) == {"cat": 5, "dog": 3}
    assert classes(prepare({**spec, "class_level": "last"})) == {"cat": 3, "dog": 3, "tag 1": 2}


def test_images_in_no_folder_are_one_error(prepare: Prepare, project: Path) -> None:
    image_folder(project, {"flat": 3})
    with pytest.raises(UserError, match=r"images: flat: holds 3 images and no class folders; .*metadata\.csv"):
        prepare("images:flat")


def test_images_that_metadata_does_not_name_are_counted(prepare: Prepare, project: Path) -> None:
    image_folder(project, {"p": 6})
    names = "".join(f"{i:02d}.png,word {i}\n" for i in range(4))
    (project / "p/metadata.csv").write_text("file_name;text\n".replace(";", ",") + names)
    assert prepare("images:p").captions == [f"word {i}" for i in range(4)]
    assert notes(project) == ["images: p: left out: 2 .png: images that metadata.csv does not name"]
    (project / "p/metadata.csv").write_text("file_name,text\n" + names + "none.png,x\n")
    with pytest.raises(UserError, match=r"p/metadata\.csv:5: names the image 'none\.png', and there is no such image"):
        prepare("images:p")


def test_files_beside_a_folder_of_tables_are_counted(prepare: Prepare, project: Path) -> None:
    image_folder(project / "t", {"x": 3})
    (project / "t/a.csv").write_text("image,text\nx/00.png,a\nx/01.png,b\n")
    (project / "t/readme.md").write_text("x")
    assert prepare("table:t").captions == ["a", "b"]
    assert notes(project) == ["table: t: left out: 1 .md, 1 .png"]


def test_every_bad_image_of_a_parquet_is_named(project: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    from tasks.prepare.registry import parse
    from tasks.prepare.source import Context, Outside

    cells = [b"", None, b"no image", b"GIF89a"]
    pa.parquet.write_table(
        pa.Table.from_pylist([{"image": cell, "text": "x"} for cell in cells]), project / "t.parquet"
    )
    problems: list[str] = []
    source = parse("table:t.parquet", "x")
    raw = project / "raw"
    raw.mkdir()
    source.fetch(raw, Outside(project, project, 0, lambda *_: None, problems.append))
    context = Context(0, 32, "bicubic", squash=False, scratch=project, complain=problems.append)
    assert list(source.read(raw, context).examples) == []
    assert [problem[: len("t.parquet:1")] for problem in problems] == [f"t.parquet:{i}" for i in (1, 2, 3, 4)]
