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
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from tasks.errors import UserError
from tasks.layout import is_there
from tasks.prepare import files
from tasks.prepare.annotated import COPY, INFO, SMALL, Annotated, bytes_of, names_of, read
from tasks.prepare.image_source import Rows
from tasks.prepare.photographs import Photographs, Selection
from tasks.prepare.source import Context, Outside
from tasks.text import shortened


class Fomo(Annotated, Photographs):
    """A set of FoMo-in-Flux with the benchmark's own annotations: ``fomo:ROOT/NAME#train``."""

    name: ClassVar[str] = "fomo"

    def find(self, path: Path) -> Selection:
        file = self._annotations(path)
        known = self.chosen(read(file, self._what))
        wanted = [path / name for name in known]
        if absent := [name for name, image in zip(known, wanted, strict=True) if not is_there(image)]:
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
        folder = path.parent / INFO if self.info is None else self._project(path) / self.info
        names = names_of(path.name, self.split)
        there = [file for name in names if (file := folder / name).is_file()]
        usable = [file for file in there if SMALL not in file.name or self._has_first(path, file)]
        if not usable:
            plain = " or ".join(name for name in names if SMALL not in name)
            raise UserError(
                f"fomo: {self.path}: {folder} has no {plain}; give the folder of the benchmark's annotation files "
                "with info"
            )
        return usable[0]

    @property
    def _what(self) -> str:
        return f"fomo: {self.path}"

    def _project(self, path: Path) -> Path:
        """The folder where relative paths start: ``path`` without the setting of that name."""
        parts = PurePosixPath(self.path).parts
        return Path() if Path(self.path).is_absolute() else path.joinpath(*[".."] * len(parts))

    def _has_first(self, path: Path, file: Path) -> bool:
        return is_there(path / next(iter(read(file, self._what))))

    def fetch_more(self, home: Path, fetched: Sequence[Path], target: Path, outside: Outside) -> Collection[Path]:  # noqa: ARG002
        file = self._annotations(home)
        files.copy(file, target / COPY)
        return [file]

    def at_most(self, project: Path) -> int | None:
        path = project / self.path
        return len(self.chosen(read(self._annotations(path), self._what))) if path.is_dir() and not self.pairs else None

    def rows(self, home: Path, files: Sequence[Path], context: Context) -> Rows:  # noqa: ARG002
        images = {file.relative_to(home).as_posix(): bytes_of(file) for file in files}
        return self.annotated_rows(images, read(home / COPY, self._what))

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir() and any((path.parent / INFO).glob(f"{path.name}_*.json"))


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
