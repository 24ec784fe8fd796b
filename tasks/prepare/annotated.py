"""The annotations of FoMo-in-Flux: a class and captions of several kinds for each image of a part of a set; JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from tasks.errors import UserError
from tasks.prepare import files
from tasks.prepare.image_source import ImageSource, Row, Rows
from tasks.text import one_line, shortened

INFO = "00_info"
"""What the benchmark calls the folder of annotations."""
PARTS = {"train": ("train", "train_mini"), "test": ("test", "val")}
"""What the parts of the annotations are called: iNaturalist's and the traffic signs' have other names."""
SMALL = "_224"
COPY = "annotations.json"
"""The annotations among the raw files."""
CAPTIONS = {
    "merged": "synthetic_merged_caption", "primer": "primer_caption", "default": "default_caption",
}  # fmt: skip
_ORDER = ("default_caption", "primer_caption", "synthetic_caption")

Caption = str | list[str] | None


class Annotation(BaseModel):
    """What is said of an image."""

    classname: str | None = None
    default_caption: Caption = None
    primer_caption: Caption = None
    synthetic_caption: Caption = None
    synthetic_merged_caption: Caption = None

    def captions(self, kind: str) -> list[str]:
        """The captions of a kind that are not empty."""
        given = getattr(self, kind)
        return [text for one in ([given] if isinstance(given, str) else given or []) if (text := one_line(one).strip())]


Annotations = dict[str, Annotation]
"""By an image's path below the folder of its set."""
_ANNOTATIONS: TypeAdapter[Annotations] = TypeAdapter(Annotations)


class Annotated(ImageSource):
    """Settings of a source of a set of FoMo-in-Flux."""

    info: str | None = None
    """The folder of annotations; by default ``00_info`` beside the set."""
    captions: Literal["merged", "primer", "default"] = "merged"
    """Which captions are trained on."""
    pairs: bool = False
    """Whether the set is one of images and captions, without classes."""

    def chosen(self, known: Annotations) -> Annotations:
        """What is said of the images of the classes that are asked for."""
        names = self.selected((one.classname for one in known.values()), f"{self.name}: {self.path}")
        return {name: one for name, one in known.items() if one.classname in names}

    def selected(self, there: Iterable[str | None], what: str) -> frozenset[str | None]:
        names = frozenset(there)
        if self.pairs and names == {None}:  # rows of pairs, whose classes `chosen` has selected by
            return names
        return super().selected(names, what)

    def annotated_rows(self, images: Mapping[str, Callable[[], bytes]], known: Annotations) -> Rows:
        """The rows of images by their paths; captions of another kind, where one has none of its own, are counted."""
        rows: list[Row] = []
        others = 0
        for name, load in images.items():
            one = known[name]
            if self.pairs:
                rows += [
                    Row(f"{name}#{number}", name, text, None, load)
                    for number, text in enumerate(one.captions("default_caption"), start=1)
                ]
                continue
            own = one.captions(CAPTIONS[self.captions])
            other = [text for kind in _ORDER for text in one.captions(kind)]
            others += not own and bool(other)
            rows.append(Row(name, name, next(iter([*own, *other]), None), one.classname, load))
        if not others:
            return Rows(rows, given=True)
        note = f"{others} of {len(rows)} samples have no {self.captions} caption, and take another one"
        return Rows(rows, given=True, notes=(note,))


def names_of(data_set: str, part: str) -> list[str]:
    """What the file of annotations of a part may be called: of the images made smaller first."""
    names = [f"{data_set}_{one}" for one in PARTS[part]]
    return [*(f"{name}{SMALL}.json" for name in names), *(f"{name}.json" for name in names)]


def read(file: Path, what: str) -> Annotations:
    """The annotations of a file; ``what`` is the source as messages call it.

    Raises:
        UserError: it is not one, is empty, or names an image outside the set's folder.
    """
    try:
        known = _ANNOTATIONS.validate_python(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{what}: {file.name}: not annotations of FoMo-in-Flux: {reason}") from None
    if not known:
        raise UserError(f"{what}: {file.name}: names no images")
    for name in known:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{what}: {file.name}: {shortened(name, 200)}: lies outside the set's folder")
    return known


def bytes_of(file: Path) -> Callable[[], bytes]:
    """What reads an image, when it is asked for."""
    return partial(files.image, file)
