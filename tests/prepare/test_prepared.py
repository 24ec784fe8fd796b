"""``prepared``: pixels of a user's images as raw pixels and as JPEG files, at the model's size and at their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.model.datasets import Dataset
from tasks.model.jpeg import JpegImages
from tasks.prepare import fetch_arrival, node
from tests.prepare.conftest import arrival, params, picture

Prepare = Callable[..., Dataset]


@pytest.fixture
def prepared(project: Path, downloads: Path) -> Prepare:
    """The images of a folder as an arrival, in some form."""

    def run(form: Any) -> Dataset:
        settings = params(arrival=arrival("images:photos"), step=1, prepared=form)
        raw = project / "data/raw/arrival"
        if not raw.exists():
            fetch_arrival(settings, arrival("images:photos"), raw, downloads, project=project)
        node.prepare_arrival(project, settings)
        return Dataset(project / "data/step/arrival")

    return run


def folder(project: Path, extension: str, **options: Any) -> None:
    for number, name in enumerate(("cat", "dog")):
        home = project / "photos" / name
        home.mkdir(parents=True)
        for i in range(3):
            picture(3 * number + i, 300, 200).save(home / f"{i}.{extension}", **options)


def size(data: Dataset) -> int:
    return sum(file.stat().st_size for file in data.folder.glob("images.*"))


def test_jpeg_files_are_smaller_and_look_the_same(project: Path, prepared: Prepare) -> None:
    folder(project, "png")
    raw = prepared("raw")
    pixels, bytes_ = np.array(raw.images), size(raw)
    encoded = prepared("jpeg")
    assert size(encoded) < bytes_ / 2
    assert np.abs(np.stack(list(encoded.images)).astype(int) - pixels).mean() < 2
    assert (encoded.ids, encoded.captions, encoded.card.classes) == (raw.ids, raw.captions, raw.card.classes)


def test_an_upright_jpeg_of_the_source_is_stored_as_it_is_and_evaluated_to_the_same_pixels(
    project: Path, prepared: Prepare
) -> None:
    folder(project, "jpg", quality=90)
    pixels = np.array(prepared("raw").images)
    data = prepared({"form": "jpeg", "size": "original"})
    assert isinstance(data.images, JpegImages)
    np.testing.assert_array_equal(data.images[:], pixels)
    assert data.images.sizes.tolist() == [[300, 200]] * 6
    stored = (data.folder / "images.arrow").read_bytes()
    assert all(file.read_bytes() in stored for file in (project / "photos").rglob("*.jpg"))


def test_a_turned_original_is_stored_upright(project: Path, prepared: Prepare) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    folder(project, "jpg", exif=exif)
    pixels = np.array(prepared("raw").images)
    data = prepared({"form": "jpeg", "size": "original"})
    assert isinstance(data.images, JpegImages)
    assert data.images.sizes.tolist() == [[200, 300]] * 6
    assert np.abs(data.images[:].astype(int) - pixels).mean() < 2
