"""Images stored as JPEG files: what is read back, the same bytes every time, crops as torchvision has them, damage."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.errors import UserError
from tasks.model import jpeg, torchvision_shim
from tasks.model.datasets import Card, Dataset, Sample, as_stored, digest, write
from tasks.model.jpeg import Jpeg, JpegImages
from tasks.params import Prepared
from tests.prepare.conftest import picture

SIZE = 32


def written(folder: Path, how: Jpeg, count: int = 5, sizes: tuple[int, int] = (48, 40)) -> Dataset:
    def samples() -> list[Sample]:
        made = []
        for i in range(count):
            image = picture(i, *sizes)
            original = jpeg.encode(image, 95) if how.size == "original" else None
            pixels = np.asarray(jpeg.fitted(image, SIZE, how.interpolation, squash=how.squash))
            made.append(Sample(f"s{i}", pixels, f"caption {i}", i % 2, original))
        return made

    write(folder, Card("things", SIZE, ("cat", "dog"), jpeg=how), iter(samples()), count)
    return Dataset(folder)


@pytest.mark.parametrize("how", [Jpeg(), Jpeg(quality=80), Jpeg("original"), Jpeg("original", squash=True)])
def test_an_image_is_read_back_as_it_was_announced(tmp_path: Path, how: Jpeg) -> None:
    data = written(tmp_path, how)
    assert data.card.jpeg == how
    assert data.images.shape == (5, SIZE, SIZE, 3)
    for i in range(5):
        original = jpeg.encode(picture(i), 95) if how.size == "original" else None
        pixels = np.asarray(jpeg.fitted(picture(i), SIZE, how.interpolation, squash=how.squash))
        assert digest(data.images[i]) == digest(as_stored(pixels, original, how))
        assert np.abs(data.images[i].astype(int) - pixels).mean() < 5
    assert not (tmp_path / "images.npy").exists()


def test_rows_slices_and_iteration_agree(tmp_path: Path) -> None:
    images = written(tmp_path, Jpeg(), jpeg.ROWS + 3).images
    whole = np.stack(list(images))
    assert len(images) == len(whole) == jpeg.ROWS + 3
    for rows in (np.array([jpeg.ROWS, 0, 258]), slice(250, None), slice(None, None, 50), -1, np.int64(256)):
        np.testing.assert_array_equal(images[rows], whole[rows])
    with pytest.raises(IndexError):
        images[jpeg.ROWS + 3]


def test_the_same_bytes_every_time_and_none_of_another_form_stay(tmp_path: Path) -> None:
    contents = []
    for name in "ab":
        written(tmp_path / name, Jpeg())
        contents.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    write(tmp_path / "a", Card("things", SIZE), [Sample("s", np.zeros((SIZE, SIZE, 3), np.uint8), "c")], 1)
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"images.npy", "samples.arrow", "dataset.json"}


@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(20, 90),
    height=st.integers(20, 90),
    edges=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 4),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
def test_a_crop_of_an_original_is_torchvisions(
    width: int, height: int, edges: tuple[float, float, float, float], interpolation: str
) -> None:
    torchvision_shim.ensure()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resized_crop

    left, top = int(edges[0] * (width - 1)), int(edges[1] * (height - 1))
    w, h = 1 + int(edges[2] * (width - left - 1)), 1 + int(edges[3] * (height - top - 1))
    data = jpeg.encode(picture(3, width, height), 95)
    theirs = resized_crop(
        Image.open(io.BytesIO(data)), top, left, h, w, [SIZE, SIZE], InterpolationMode(interpolation), antialias=True
    )
    ours = jpeg.cropped(data, np.array([left, top, left + w, top + h]), SIZE, Jpeg("original", 95, interpolation))
    np.testing.assert_array_equal(ours, np.asarray(theirs))


@pytest.mark.parametrize("damage", ["cut off", "another file"])
def test_a_damaged_image_is_named(tmp_path: Path, damage: str) -> None:
    good = jpeg.encode(picture(0), 95)
    bad = good[:-200] if damage == "cut off" else good[:250] + bytes(len(good) - 250)
    jpeg.write(tmp_path / "images.arrow", [good, bad])
    images = JpegImages(tmp_path / "images.arrow", SIZE, Jpeg("original"))
    assert images[0].shape == (SIZE, SIZE, 3)
    for read in (lambda: images[1], lambda: images.cropped(np.array([1]), np.array([[0, 0, 9, 9]]))):
        with pytest.raises(UserError, match=r"images\.arrow: image 1 cannot be decoded .*; prepare the data set again"):
            read()


@pytest.mark.parametrize("keep", [None, 0, 10, -1])
def test_a_damaged_file_is_named(tmp_path: Path, keep: int | None) -> None:
    written(tmp_path / "data", Jpeg())
    path = tmp_path / "data/images.arrow"
    content = path.read_bytes()
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(content[:keep])
    with pytest.raises(UserError, match="data: not a prepared data set"):
        Dataset(tmp_path / "data")


def test_params_choose_the_form() -> None:
    assert jpeg.chosen(Prepared(), "bicubic", squash=False) is None
    chosen = jpeg.chosen(Prepared(form="jpeg", size="original", quality=80), "bilinear", squash=True)
    assert chosen == Jpeg("original", 80, "bilinear", squash=True)
    with pytest.raises(ValueError, match="add form: jpeg"):
        Prepared(size="original")
