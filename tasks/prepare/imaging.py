"""Photographs to pixels: decoded once, upright, RGB, at the model's image size."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from tasks.errors import UserError
from tasks.prepare.source import Context

if TYPE_CHECKING:
    from PIL.Image import Image

_BACKGROUND = (255, 255, 255, 255)


def decode(data: bytes, context: Context, what: str) -> np.ndarray:
    """Decode an image file as open_clip's evaluation transform would, up to normalization.

    Turned upright (EXIF), transparency on white, RGB, shorter side resized to the image size, centre crop (or
    squeezed, where the context says so). Returns uint8 of shape (image_size, image_size, 3).

    Raises:
        UserError: it is no image that Pillow reads, or is cut off; names ``what``.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = _rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise UserError(f"{what}: not an image, or of a format that is not read; replace or remove it") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{what}: the image cannot be decoded ({error}); replace or remove it") from None
    size = context.image_size
    scale = size / min(image.size)
    width, height = (size, size) if context.squash else (max(size, int(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling[context.interpolation.upper()])
    left, top = round((width - size) / 2), round((height - size) / 2)  # as torchvision's CenterCrop
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _rgb(image: Image) -> Image:
    from PIL import Image as Pillow

    if image.mode.startswith("I") or image.mode == "F":  # 16 bits or more per pixel: to 8, not clipped
        pixels = np.asarray(image, dtype=np.float64)
        top = 65535 if pixels.max(initial=0) > 255 else 255
        image = Pillow.fromarray(np.clip(pixels * 255 / top, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Pillow.alpha_composite(Pillow.new("RGBA", image.size, _BACKGROUND), image).convert("RGB")
    return image.convert("RGB")
