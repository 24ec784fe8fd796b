"""Photographs to pixels: decoded once, upright, RGB, at the model's image size."""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tasks.errors import UserError
from tasks.model import jpeg
from tasks.prepare.listing import HEIC, image_extensions
from tasks.prepare.source import Context

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION = 0x0112
"""The number of the EXIF tag that says how an image is turned."""
_BACKGROUND = (255, 255, 255, 255)
_DARKEST = 1 / 16
"""Brightest value of an image relative to white; of one below it, white is unknown: 4095 may be that of 12 bits."""


def decode(data: bytes, context: Context, what: str) -> np.ndarray:
    """As `decode_with_original`, the pixels alone."""
    return _pixels(_upright(data, context, what), context, what)


def decode_with_original(data: bytes, context: Context, what: str) -> tuple[np.ndarray, bytes | None]:
    """Decode an image file as open_clip's evaluation transform would, up to normalization.

    Turned upright (EXIF), transparency on white, RGB, shorter side resized to the image size, centre crop (or
    squeezed, where the context says so). Returns uint8 of shape (image_size, image_size, 3); and, where the context
    asks for originals, the upright RGB image as a JPEG file: the file itself, if it is one.

    Raises:
        UserError: it is no image that Pillow reads, is cut off, has too many pixels, or values of an unclear range;
            names ``what``.
    """
    image = _upright(data, context, what)
    if not (context.originals and context.jpeg):
        return _pixels(image, context, what), None
    original = data if _is_plain_jpeg(data) else jpeg.encode(image, context.jpeg.quality)
    return _pixels(image, context, what), original


def _upright(data: bytes, context: Context, what: str) -> Image:
    from PIL import Image, ImageOps, UnidentifiedImageError

    _set_up()
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > context.limits.image_pixels:
                raise UserError(
                    f"{what}: has {opened.width} x {opened.height} pixels, more than {context.limits.image_pixels} "
                    "(limits.image_pixels in params.yaml); make it smaller"
                )
            return _rgb(ImageOps.exif_transpose(opened), what)
    except UnidentifiedImageError:
        raise UserError(f"{what}: not an image, or of a format that is not read; replace or remove it") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UserError(f"{what}: the image cannot be decoded ({error}); replace or remove it") from None


def _pixels(image: Image, context: Context, what: str) -> np.ndarray:
    width, height = jpeg.fitted_size(image.size, context.image_size, squash=context.squash)
    if width * height > context.limits.image_pixels:
        raise UserError(
            f"{what}: is {image.width} x {image.height} pixels, too narrow to be resized; crop or remove it"
        )
    return np.asarray(jpeg.fitted(image, context.image_size, context.interpolation, squash=context.squash))


def _is_plain_jpeg(data: bytes) -> bool:
    """Whether a file is a JPEG that needs nothing but decoding: grey or RGB, and upright."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        upright = opened.getexif().get(ORIENTATION, 1) == 1
        return opened.format == "JPEG" and opened.mode in ("L", "RGB") and upright


@cache
def _set_up() -> None:
    """Once for the process: the reader of HEIC, and a limit of pixels that is ours.

    Pillow's warnings (an EXIF block that is cut off, an odd MPO file) name no file, and the image is read without.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if image_extensions() >= HEIC:
        import pillow_heif

        pillow_heif.register_heif_opener()


def _rgb(image: Image, what: str) -> Image:
    from PIL import Image as Pillow

    if image.mode.startswith("I") or image.mode == "F":  # 16 bits or more per pixel: to 8, not clipped
        pixels = np.asarray(image, dtype=np.float64)
        image = Pillow.fromarray(np.clip(pixels * 255 / _white(pixels, image.mode, what), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Pillow.alpha_composite(Pillow.new("RGBA", image.size, _BACKGROUND), image).convert("RGB")
    return image.convert("RGB")


def _white(pixels: np.ndarray, mode: str, what: str) -> float:
    """The value of white: 1 in floating point, else 255 or 65535, by the brightest pixel.

    Raises:
        UserError: no such range holds all values, or the next larger one would make all of it dark.
    """
    low, top = float(pixels.min(initial=0)), float(pixels.max(initial=0))
    floating = mode == "F"
    if not (np.isfinite(low) and np.isfinite(top)):
        raise UserError(f"{what}: holds values that are not finite; save it with 8 bits per channel")
    whites = (1.0, 255.0, 65535.0) if floating else (255.0, 65535.0)
    white = next((white for white in whites if top <= white), None)
    if low < 0 or white is None or (white != whites[0] and top < white * _DARKEST):
        raise UserError(
            f"{what}: holds values from {low:g} to {top:g}, a range of no known white; save it with 8 bits per channel"
        )
    return white
