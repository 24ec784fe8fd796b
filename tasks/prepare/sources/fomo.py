"""``fomo``: a set of FoMo-in-Flux (arXiv 2408.14471), as its authors' archives have it, with its annotations.

Short form ``fomo:ROOT/NAME#train``, ``#test``; ``share`` as for own images. ROOT/NAME has the images. The annotations
are ``NAME_PART.json`` in the folder ``info``, by default ``00_info`` beside ROOT/NAME: a JSON object from an image's
path below ROOT/NAME to ``classname``, ``default_caption``, ``primer_caption``, ``synthetic_caption``,
``synthetic_merged_caption`` and ``target``; captions are a text, a list of them, or null. Where the images of
``NAME_PART_224.json`` are there, that is read: the same images, made smaller.

captions
    ``merged``: the synthetic captions with the class's name merged in, on which the benchmark trains; ``primer`` or
    ``default``. An image without such a caption has its default, primer or synthetic one, in this order. Of several the
    first is taken.
pairs
    Images and all their default captions, each a sample, and no classes: the sets that are scored by retrieval.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from tasks.errors import UserError
from tasks.prepare import files
from tasks.prepare.image_source import Row, Rows
from tasks.prepare.photographs import Photographs, Selection
from tasks.prepare.source import Context, Outside
from tasks.text import one_line, shortened

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


_ANNOTATIONS: TypeAdapter[dict[str, Annotation]] = TypeAdapter(dict[str, Annotation])


class Fomo(Photographs):
    """A set of FoMo-in-Flux with the benchmark's own annotations: ``fomo:ROOT/NAME#train``."""

    name: ClassVar[str] = "fomo"

    info: str | None = None
    """The folder of annotations; by default ``00_info`` beside the set's folder."""
    captions: Literal["merged", "primer", "default"] = "merged"
    """Which captions are trained on."""
    pairs: bool = False
    """Whether the set is one of images and captions, without classes."""

    def find(self, path: Path) -> Selection:
        file = self._annotations(path)
        known = self._chosen(self._read(file))
        wanted = [path / name for name in known]
        if absent := [name for name, image in zip(known, wanted, strict=True) if not _is_there(image)]:
            raise UserError(
                f"fomo: {self.path}: {len(absent)} of {len(known)} images of {file.name} are not there, such as "
                f"{shortened(absent[0], 200)}; unpack the set's archive there"
            )
        return Selection(sorted(wanted), given=True)

    def _annotations(self, path: Path) -> Path:
        """The annotations of the part: of the small images, where these are there."""
        if self.split is None:
            raise UserError(f"fomo: {self.path}: has the parts train and test; pick one with #train or #test")
        if (path / COPY).is_file():  # the set as it arrived and was kept
            return path / COPY
        folder = path.parent / "00_info" if self.info is None else self._project(path) / self.info
        names = [f"{path.name}_{part}" for part in PARTS[self.split]]
        there = [file for name in names if (file := folder / f"{name}.json").is_file()]
        small = [
            file for name in names if (file := folder / f"{name}{SMALL}.json").is_file() and self._has_first(path, file)
        ]
        if not there and not small:
            raise UserError(
                f"fomo: {self.path}: {folder} has no {' or '.join(f'{name}.json' for name in names)}; give the folder"
                " of the benchmark's annotation files with info"
            )
        return (small or there)[0]

    def _project(self, path: Path) -> Path:
        """The folder where relative paths start: ``path`` without the setting of that name."""
        parts = PurePosixPath(self.path).parts
        return Path() if Path(self.path).is_absolute() else path.joinpath(*[".."] * len(parts))

    def _has_first(self, path: Path, file: Path) -> bool:
        return _is_there(path / next(iter(self._read(file))))

    def _read(self, file: Path) -> dict[str, Annotation]:
        """The annotations of a file.

        Raises:
            UserError: it is not one, is empty, or names an image outside the set's folder.
        """
        try:
            known = _ANNOTATIONS.validate_python(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise UserError(f"fomo: {self.path}: {file.name}: not annotations of FoMo-in-Flux: {reason}") from None
        if not known:
            raise UserError(f"fomo: {self.path}: {file.name}: names no images")
        for name in known:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                shown = shortened(name, 200)
                raise UserError(f"fomo: {self.path}: {file.name}: {shown}: lies outside the set's folder")
        return known

    def _chosen(self, known: dict[str, Annotation]) -> list[str]:
        names = self.selected((one.classname for one in known.values()), f"fomo: {self.path}")
        return [name for name, one in known.items() if one.classname in names]

    def selected(self, there: Iterable[str | None], what: str) -> frozenset[str | None]:
        names = frozenset(there)
        if self.pairs and names == {None}:  # rows of pairs, whose classes `find` has selected by
            return names
        return super().selected(names, what)

    def fetch_more(self, home: Path, fetched: Sequence[Path], target: Path, outside: Outside) -> Collection[Path]:  # noqa: ARG002
        file = self._annotations(home)
        files.copy(file, target / COPY)
        return [file]

    def at_most(self, project: Path) -> int | None:
        path = project / self.path
        return len(self._chosen(self._read(self._annotations(path)))) if path.is_dir() and not self.pairs else None

    def rows(self, home: Path, files: Sequence[Path], context: Context) -> Rows:  # noqa: ARG002
        known = self._read(home / COPY)
        rows: list[Row] = []
        others = 0
        for file in files:
            name = file.relative_to(home).as_posix()
            one = known[name]
            if self.pairs:
                rows += [
                    Row(f"{name}#{number}", name, text, None, partial(_bytes, file))
                    for number, text in enumerate(one.captions("default_caption"), start=1)
                ]
                continue
            own = one.captions(CAPTIONS[self.captions])
            other = [text for kind in _ORDER for text in one.captions(kind)]
            others += not own and bool(other)
            rows.append(Row(name, name, next(iter([*own, *other]), None), one.classname, partial(_bytes, file)))
        if not others:
            return Rows(rows, given=True)
        note = f"{others} of {len(rows)} samples have no {self.captions} caption, and take another one"
        return Rows(rows, given=True, notes=(note,))

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir() and any((path.parent / "00_info").glob(f"{path.name}_*.json"))


def _is_there(image: Path) -> bool:
    try:
        return image.exists()
    except OSError:  # too long: no name of a file
        return False


def _bytes(file: Path) -> bytes:
    return file.read_bytes()


def sequence(path: Path) -> list[tuple[str, str]]:
    """A ready class sequence of the benchmark: the data set and the class of each entry ``dataset+++class``.

    Raises:
        UserError: it is no JSON list of such texts, or has one twice.
    """
    try:
        entries: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable class sequence: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: not a class sequence: expected a JSON list of texts dataset+++class")
    ordered: dict[tuple[str, str], None] = {}
    for number, entry in enumerate(entries):
        data_set, mark, name = entry.partition("+++") if isinstance(entry, str) else ("", "", "")
        if not mark or not data_set or not name:
            raise UserError(f"{path}: entry {number}: expected dataset+++class, got {entry!r:.80}")
        if (data_set, name) in ordered:
            raise UserError(f"{path}: entry {number}: {entry} is there twice")
        ordered[data_set, name] = None
    return list(ordered)
