"""The prepared form of a data set: decoded once, memory-mapped, randomly accessible.

A folder of three files, all of standard formats and of bytes that depend on the content alone:

``images.npy``, or ``images.arrow``
    uint8, shape (N, H, W, 3): RGB, already at the model's image size; or JPEG files (see `tasks.model.jpeg`).
``samples.arrow``
    Arrow IPC file (uncompressed, memory-mapped), N rows: ``id`` string, unique within the data set; ``caption``
    string; ``label`` int32, index into the classes, or -1 where the source has captions only.
``dataset.json``
    `Card`: name, classes, primer prompt, where the data come from and under which licence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from tasks.errors import UserError
from tasks.model import jpeg
from tasks.model.jpeg import Jpeg, JpegImages
from tasks.storage import atomic

_FIELDS: dict[str, pa.DataType] = {"id": pa.string(), "caption": pa.string(), "label": pa.int32()}
SCHEMA = pa.schema(_FIELDS)


@dataclass(frozen=True)
class Origin:
    """Where part of a data set comes from, for its data card."""

    source: str
    """What was read, e.g. ``@iconify-json/noto 1.2.9`` or a folder's name."""
    licence: str = "unknown"
    attribution: str = ""
    """Authors and the address of the licence, as the source asks to be credited."""
    files: tuple[tuple[str, int, str], ...] = ()
    """Of files that were downloaded: path, bytes, SHA-256."""


@dataclass(frozen=True)
class Card:
    """What a data set is: the part of it that people read."""

    name: str
    image_size: int
    classes: tuple[str, ...] = ()
    prompt: str = "a photo of a {}."
    """One primer prompt; ``{}`` is the class name."""
    origins: tuple[Origin, ...] = ()
    size: int = 0
    """Number of samples."""
    templates: tuple[str, ...] = ()
    """The prompt ensemble that the data come with, as several prompts like ``prompt``; empty where that is all."""
    jpeg: Jpeg | None = None
    """How images are stored as JPEG files; None where they are raw pixels."""

    def as_dict(self) -> dict[str, Any]:
        """The content of ``dataset.json``."""
        content = asdict(self)
        for origin in content["origins"]:
            if not origin["files"]:
                del origin["files"]
        return {key: value for key, value in content.items() if value or key not in ("templates", "jpeg")}


@dataclass(frozen=True)
class Sample:
    """One decoded sample on its way into a data set. ``image`` is uint8, shape (H, W, 3)."""

    id: str
    image: np.ndarray = field(repr=False)
    caption: str
    label: int = -1
    original: bytes | None = field(default=None, repr=False)
    """The image at its original size, as a JPEG file; only for data sets that store it."""


class ImageArray(Protocol):
    """The images of a data set: a memory-mapped array, or `JpegImages`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """uint8 images of one row, of a slice or of an array of rows."""

    def __iter__(self) -> Iterator[np.ndarray]: ...


def digest(image: np.ndarray) -> bytes:
    """The hash of a prepared image, uint8 of shape (H, W, 3): equal for images that are the same to the model."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


class Dataset:
    """A prepared data set, opened for reading; nothing is loaded until it is indexed.

    Raises:
        UserError: the folder is not a complete prepared data set; the message names the file.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            raw = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
            raw["origins"] = tuple(
                Origin(**{**o, "files": tuple(tuple(one) for one in o.get("files", ()))}) for o in raw["origins"]
            )
            raw["classes"] = tuple(raw["classes"])
            raw["templates"] = tuple(raw.get("templates", ()))
            raw["jpeg"] = Jpeg(**raw["jpeg"]) if "jpeg" in raw else None
            self.card = Card(**raw)
            self.images: ImageArray = self._images()
            with pa.memory_map(str(folder / "samples.arrow")) as source:
                table = pa.ipc.open_file(source).read_all()
        except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
            raise UserError(f"{folder}: not a prepared data set ({error}); prepare it again") from None
        self.ids: list[str] = [str(i) for i in table["id"].to_pylist()]
        self.captions: list[str] = [str(c) for c in table["caption"].to_pylist()]
        self.labels: np.ndarray = table["label"].to_numpy()
        if not len(self.images) == len(self.ids) == self.card.size:
            raise UserError(
                f"{folder}: {len(self.images)} images, {len(self.ids)} samples, {self.card.size} on the card; "
                "prepare it again"
            )

    def _images(self) -> ImageArray:
        if self.card.jpeg:
            return JpegImages(self.folder / "images.arrow", self.card.image_size, self.card.jpeg)
        pixels: np.ndarray = np.load(self.folder / "images.npy", mmap_mode="r")
        return pixels

    def __len__(self) -> int:
        return self.card.size


def write(folder: Path, card: Card, samples: Iterable[Sample], count: int) -> Card:
    """Write ``count`` samples as a prepared data set, one image in memory at a time.

    Images must be uint8 of shape (image_size, image_size, 3). The card is written last: a folder with one is
    complete. Returns the card with its size filled in.

    Raises:
        UserError: no samples, or an id that occurs twice.
        ValueError: an image or a label that the card does not allow.
    """
    if not count:
        raise UserError(f"data set {card.name!r} is empty: its sources select no samples")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").unlink(missing_ok=True)
    for name in ("images.npy", "images.arrow"):
        (folder / name).unlink(missing_ok=True)
    rows: dict[str, list[str | int]] = {"id": [], "caption": [], "label": []}
    checked = _checked(card, _counted(samples, count), rows)
    if card.jpeg:
        jpeg.write(folder / "images.arrow", _encoded(checked, card.jpeg))
    else:
        _write_pixels(folder / "images.npy", checked, (count, card.image_size, card.image_size, 3))
    with pa.OSFile(str(folder / "samples.arrow"), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(pa.table(rows, schema=SCHEMA))
    card = replace(card, size=count)
    atomic.write(folder / "dataset.json", json.dumps(card.as_dict(), indent=1, ensure_ascii=False) + "\n")
    return card


def _checked(card: Card, samples: Iterable[Sample], rows: dict[str, list[str | int]]) -> Iterator[Sample]:
    """The samples as they come, each added to ``rows``."""
    shape = (card.image_size, card.image_size, 3)
    seen: set[str] = set()
    for sample in samples:
        _check(card, sample, shape)
        if sample.id in seen:
            raise UserError(f"data set {card.name!r} holds the sample {sample.id!r} twice")
        seen.add(sample.id)
        rows["id"].append(sample.id)
        rows["caption"].append(sample.caption)
        rows["label"].append(sample.label)
        yield sample


def _write_pixels(path: Path, samples: Iterable[Sample], shape: tuple[int, ...]) -> None:
    # Written through a file, not a memory map: a full disk is an OSError there, and a crash (SIGBUS) here.
    with path.open("wb") as images:
        header = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(images, header)
        for sample in samples:
            images.write(sample.image.tobytes())


def _encoded(samples: Iterator[Sample], how: Jpeg) -> Iterator[bytes]:
    while some := list(islice(samples, jpeg.ROWS)):
        yield from jpeg.encoded([sample.original or sample.image for sample in some], how.quality)


def as_stored(image: np.ndarray, original: bytes | None, how: Jpeg | None) -> np.ndarray:
    """An image as a data set gives it back: uint8, shape (H, W, 3), changed by JPEG where it is stored so."""
    if how is None:
        return image
    return jpeg.decode(original or jpeg.encode(image, how.quality), len(image), how)


def _check(card: Card, sample: Sample, shape: tuple[int, ...]) -> None:
    if sample.image.dtype != np.uint8 or sample.image.shape != shape:
        raise ValueError(f"{sample.id}: expected uint8 of shape {shape}, got {sample.image.dtype} {sample.image.shape}")
    if not -1 <= sample.label < len(card.classes):
        raise ValueError(f"{sample.id}: label {sample.label} is out of range for {len(card.classes)} classes")


def _counted(samples: Iterable[Sample], count: int) -> Iterator[Sample]:
    seen = 0
    for seen, sample in enumerate(samples, start=1):
        if seen > count:
            break
        yield sample
    if seen != count:
        raise RuntimeError(f"announced {count} samples, got {'more' if seen > count else seen}")
