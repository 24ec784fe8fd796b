"""Decoding: any mode and orientation becomes upright RGB at the model's size, as open_clip's transform would."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.errors import UserError
from tasks.params import Limits
from tasks.prepare import imaging
from tasks.prepare.imaging import decode
from tasks.prepare.source import Context
from tests.prepare.conftest import picture

CONTEXT = Context(seed=0, image_size=32, interpolation="bicubic", squash=False, scratch=Path())


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@given(width=st.integers(1, 90), height=st.integers(1, 90), squash=st.booleans())
def test_any_size_becomes_the_model_size(width: int, height: int, squash: bool) -> None:
    pixels = decode(encoded(picture(3, width, height)), replace(CONTEXT, squash=squash), "x")
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("size", [(48, 40), (40, 48), (33, 32), (101, 37), (32, 32), (20, 17)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_equal_to_torchvision(size: tuple[int, int], interpolation: str) -> None:
    from tasks.model.torchvision_shim import ensure

    ensure()
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    image = picture(5, *size)
    theirs = Compose([Resize(32, InterpolationMode(interpolation)), CenterCrop(32)])(image)
    ours = decode(encoded(image), replace(CONTEXT, interpolation=interpolation), "x")
    np.testing.assert_array_equal(ours, np.asarray(theirs))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_every_mode(mode: str) -> None:
    if mode in ("I;16", "I"):
        grey = np.asarray(picture(2).convert("L"))
        image = Image.fromarray((grey.astype(np.uint16) * 257) if mode == "I;16" else grey.astype(np.int32) * 257)
    else:
        image = picture(2).convert(mode)
    pixels = decode(encoded(image, "TIFF" if mode in ("CMYK", "I") else "PNG"), CONTEXT, "x")
    assert pixels.shape == (32, 32, 3)
    if mode not in ("1", "P"):
        expected = decode(encoded(picture(2).convert("L" if mode[0] in "LI" else "RGB")), CONTEXT, "x")
        assert np.abs(pixels.astype(int) - expected).max() <= 3


def test_transparency_is_on_white() -> None:
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    assert (decode(encoded(clear), CONTEXT, "x") == 255).all()
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([0, 0, 0] * 256)
    assert (decode(encoded(palette, transparency=0), CONTEXT, "x") == 255).all()


def test_a_turned_photograph_is_put_upright() -> None:
    image = Image.new("RGB", (64, 64), "white")
    image.paste((200, 0, 0), (0, 0, 64, 32))  # red above
    exif = Image.Exif()
    exif[0x0112] = 6  # shot with the camera turned: to be rotated by 90 degrees
    turned = image.rotate(90, expand=True)
    pixels = decode(encoded(turned, "JPEG", exif=exif, quality=95), CONTEXT, "x")
    assert pixels[4, 16, 1] < 60
    assert pixels[27, 16, 1] > 200


def test_what_is_no_image_is_named() -> None:
    with pytest.raises(UserError, match=r"cat/1\.png: not an image"):
        decode(b"hello", CONTEXT, "cat/1.png")
    with pytest.raises(UserError, match=r"cat/1\.png: the image cannot be decoded"):
        decode(encoded(picture(1))[:-60], CONTEXT, "cat/1.png")
    with pytest.raises(UserError, match=r"cat/1\.png: not an image"):
        decode(b"", CONTEXT, "cat/1.png")


def tiff(pixels: np.ndarray) -> bytes:
    return encoded(Image.fromarray(pixels), "TIFF")


def test_floating_point_images_keep_their_values() -> None:
    ramp = np.linspace(0, 1, 40 * 40, dtype=np.float32).reshape(40, 40)
    images = [decode(tiff(ramp * white), CONTEXT, "x").astype(int) for white in (1, 255, 65535)]
    assert max(np.abs(image - images[0]).max() for image in images) <= 1
    assert images[0].max() > 230


@pytest.mark.parametrize("values", [(0, np.nan), (0, np.inf), (-1, 1), (0, 1.5), (0, 262), (0, 4095), (0, 1e6)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_point_images_of_an_unclear_range_are_refused(values: tuple[float, float], dtype: type) -> None:
    pixels = np.zeros((40, 40), dtype=dtype)
    pixels[0, 0], pixels[1, 1] = values
    with pytest.raises(UserError, match=r"a\.tiff: (holds values|not an image)"):
        decode(tiff(pixels), CONTEXT, "a.tiff")


@pytest.mark.parametrize(("white", "dtype"), [(1023, np.uint16), (4095, np.uint16), (4095, np.int32)])
def test_images_of_10_or_12_bits_are_not_read_as_dark_ones_of_16(white: int, dtype: type) -> None:
    pixels = np.linspace(0, white, 40 * 40).reshape(40, 40).astype(dtype)
    with pytest.raises(UserError, match=rf"holds values from 0 to {white}, a range of no known white"):
        decode(tiff(pixels), CONTEXT, "a.tiff")


def test_whole_numbers_beyond_16_bits_are_refused() -> None:
    for values in ((0, 70000), (-3, 10)):
        pixels = np.zeros((40, 40), dtype=np.int32)
        pixels[0, 0], pixels[1, 1] = values
        with pytest.raises(UserError, match="a range of no known white"):
            decode(tiff(pixels), CONTEXT, "a.tiff")


def test_pixels_are_limited_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    context = replace(CONTEXT, limits=Limits(image_pixels=1000))
    with pytest.raises(UserError, match=r"x: has 48 x 40 pixels, more than 1000 \(limits\.image_pixels in params"):
        decode(encoded(picture(1)), context, "x")
    with pytest.raises(UserError, match="is 1 x 900 pixels, too narrow to be resized"):
        decode(encoded(Image.new("L", (1, 900))), context, "x")
    decode(encoded(Image.new("1", (10_000, 10_000))), CONTEXT, "x")  # Pillow warns from 90 million on
    assert not recwarn.list


def test_no_warning_of_pillow_reaches_the_terminal() -> None:
    photograph = encoded(picture(0), "JPEG")
    cut_exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\xff" * 30
    odd = [
        encoded(Image.new("1", (10_000, 9_000)), "PNG"),  # of more pixels than Pillow likes
        photograph[:2] + b"\xff\xe1" + (len(cut_exif) + 2).to_bytes(2, "big") + cut_exif + photograph[2:],
        photograph[:2] + b"\xff\xe2\0\x20MPF\0II*\0\x08\0\0\0" + bytes(16) + photograph[2:],
    ]
    imaging._set_up.cache_clear()  # each test finds the filters as they were
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert [decode(data, CONTEXT, "x").shape for data in odd] == [(32, 32, 3)] * 3
    assert not said
