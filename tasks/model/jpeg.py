"""Images of a prepared data set as JPEG files: a tenth of the bytes of raw pixels, decoded by several threads.

``images.arrow``: Arrow IPC file, memory-mapped, one row a sample in batches of `ROWS`: ``jpeg`` large_binary, ``width``
and ``height`` int32, in pixels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from tasks.errors import UserError
from tasks.params import Prepared

if TYPE_CHECKING:
    from PIL.Image import Image

_FIELDS: dict[str, pa.DataType] = {"jpeg": pa.large_binary(), "width": pa.int32(), "height": pa.int32()}
SCHEMA = pa.schema(_FIELDS)
ROWS = 256
"""Images of a record batch."""


@dataclass(frozen=True)
class Jpeg:
    """How images are stored, and how they become pixels at the model's size."""

    size: Literal["model", "original"] = "model"
    """At the model's size, or at that of the source: random crops are then drawn from the original."""
    quality: int = 95
    """Of images that are encoded here, 1 to 100; a JPEG file of the source is stored as it is at its original size."""
    interpolation: str = "bicubic"
    """How originals are resized, and how crops of them are."""
    squash: bool = False
    """Whether originals are squeezed into the square; else the shorter side is resized and the centre cut out."""


def chosen(prepared: Prepared, interpolation: str, *, squash: bool) -> Jpeg | None:
    """How the params have images stored for a model that resizes them so; None as raw pixels."""
    if prepared.form == "raw":
        return None
    return Jpeg(prepared.size, prepared.quality, interpolation, squash)


def encode(image: Image | np.ndarray, quality: int) -> bytes:
    """An RGB image as a JPEG file without chroma subsampling; equal bytes for equal pixels, version by version."""
    from PIL import Image as Pillow

    picture = Pillow.fromarray(image) if isinstance(image, np.ndarray) else image
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality, subsampling="4:4:4")
    return content.getvalue()


def encoded(images: Iterable[np.ndarray | bytes], quality: int) -> Iterator[bytes]:
    """As `encode`, by several threads; what is encoded already is handed on."""

    def one(image: np.ndarray | bytes) -> bytes:
        return image if isinstance(image, bytes) else encode(image, quality)

    return _threads(os.getpid()).map(one, images)


def decode(data: bytes | memoryview, image_size: int, how: Jpeg) -> np.ndarray:
    """Pixels as the evaluation transform of open_clip has them: uint8, shape (image_size, image_size, 3)."""
    with _opened(data) as image:
        return np.asarray(fitted(image, image_size, how.interpolation, squash=how.squash))


def fitted_size(size: tuple[int, int], image_size: int, *, squash: bool) -> tuple[int, int]:
    """The width and height to which an image of ``size`` is resized before the centre is cut out."""
    if squash:
        return image_size, image_size
    scale = image_size / min(size)
    return max(image_size, int(size[0] * scale)), max(image_size, int(size[1] * scale))


def fitted(image: Image, image_size: int, interpolation: str, *, squash: bool) -> Image:
    """The shorter side resized to the model's size and the centre cut out; or the image squeezed into the square."""
    from PIL import Image as Pillow

    width, height = fitted_size(image.size, image_size, squash=squash)
    if (width, height) != image.size:
        image = image.resize((width, height), Pillow.Resampling[interpolation.upper()])
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)  # as torchvision's CenterCrop
    return image.crop((left, top, left + image_size, top + image_size))


def cropped(data: bytes | memoryview, box: np.ndarray, image_size: int, how: Jpeg) -> np.ndarray:
    """The part of an original in a box (left, top, right, bottom; pixels), resized to the model's size: uint8."""
    from PIL import Image as Pillow

    with _opened(data) as image:
        left, top, right, bottom = (int(edge) for edge in box)
        part = image.crop((left, top, right, bottom))
        return np.asarray(part.resize((image_size, image_size), Pillow.Resampling[how.interpolation.upper()]))


@contextmanager
def _opened(data: bytes | memoryview) -> Iterator[Image]:
    from PIL import Image as Pillow

    with Pillow.open(io.BytesIO(data), formats=["JPEG"]) as image:
        yield image.convert("RGB")


@cache
def _threads(process: int) -> ThreadPoolExecutor:  # noqa: ARG001 - threads do not outlive a fork
    """The threads of this process that encode and decode; Pillow does both outside the interpreter lock."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)))


def write(path: Path, images: Iterable[bytes]) -> None:
    """Write JPEG files in the order given, `ROWS` in memory at a time."""
    from PIL import Image as Pillow

    rows: list[tuple[bytes, int, int]] = []
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:

        def flush() -> None:
            columns = zip(*rows, strict=True)
            writer.write_batch(
                pa.record_batch([pa.array(c, t) for c, t in zip(columns, _FIELDS.values(), strict=True)], schema=SCHEMA)
            )
            rows.clear()

        for data in images:
            with Pillow.open(io.BytesIO(data), formats=["JPEG"]) as image:
                rows.append((data, *image.size))
            if len(rows) == ROWS:
                flush()
        if rows:
            flush()


class JpegImages:
    """Images that are decoded as they are indexed, several at a time; for its readers an array (N, H, W, 3) of uint8.

    Raises:
        OSError, ValueError: there is no such file, or it is none.
    """

    def __init__(self, path: Path, image_size: int, how: Jpeg):
        self._path, self._size, self.how = path, image_size, how
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        sides = [np.stack([batch["width"].to_numpy(), batch["height"].to_numpy()], axis=1) for batch in self._batches]
        self.sizes: np.ndarray = np.concatenate(sides) if sides else np.empty((0, 2), np.int32)
        """Width and height of the stored images, int32, shape (N, 2)."""

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), self._size, self._size, 3

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The images of a row, a slice or an array of rows.

        Raises:
            UserError: a file is damaged; names the data set and the row.
        """
        if isinstance(rows, (int, np.integer)):
            return self._pixels(int(np.arange(len(self))[rows]))
        return self._several(np.arange(len(self))[rows], self._pixels)

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), ROWS):
            yield from self[start : start + ROWS]

    def cropped(self, rows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """As indexing, of boxes (left, top, right, bottom; int64, shape (n, 4)) of the stored images.

        Raises:
            UserError: as indexing.
        """

        def read(one: tuple[int, np.ndarray]) -> np.ndarray:
            row, box = one
            return self._read(row, lambda data: cropped(data, box, self._size, self.how))

        return self._several(list(zip(rows.tolist(), boxes, strict=True)), read)

    def _pixels(self, row: int) -> np.ndarray:
        return self._read(int(row), lambda data: decode(data, self._size, self.how))

    def _several(self, work: Any, read: Callable[[Any], np.ndarray]) -> np.ndarray:
        images = np.empty((len(work), self._size, self._size, 3), np.uint8)
        for i, image in enumerate(_threads(os.getpid()).map(read, work)):
            images[i] = image
        return images

    def _read(self, row: int, read: Callable[[memoryview], np.ndarray]) -> np.ndarray:
        batch = int(np.searchsorted(self._starts, row, side="right")) - 1
        data = memoryview(self._batches[batch]["jpeg"][row - int(self._starts[batch])].as_buffer())
        try:
            return read(data)
        except (OSError, ValueError, SyntaxError) as error:
            problem = f"image {row} cannot be decoded ({error}); prepare the data set again"
            raise UserError(f"{self._path}: {problem}") from None
