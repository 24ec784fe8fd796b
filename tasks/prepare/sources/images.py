"""``images``: a folder of image files; the folder that an image lies in is its class.

Short form ``images:PATH``, ``images:PATH#train``, ``images:PATH#test``; settings: `Photographs`. Given splits are two
folders ``train`` and ``test`` (or validation) at the top. A metadata.csv, .jsonl or .parquet with a column
``file_name`` gives captions or classes instead, as in Hugging Face's ``imagefolder``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from tasks.errors import UserError
from tasks.prepare import hugging
from tasks.prepare.photographs import CAPTION_COLUMNS, LABEL_COLUMNS, Photographs, Row, given_splits, pick
from tasks.prepare.source import Complain

EXTENSIONS = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


class Images(Photographs):
    """See the module's docstring."""

    kind: ClassVar[str] = "images"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir() and any(found.suffix.lower() in EXTENSIONS for found in _walk(path))

    def find(self, path: Path) -> tuple[list[Path], bool]:
        if not path.is_dir():
            raise UserError(f"images: {self.path}: not a folder")
        top, split = self._top(path)
        found = sorted(p for p in _walk(top) if p.suffix.lower() in EXTENSIONS or p.name in METADATA)
        if not found:
            raise UserError(f"images: {self._shown(top, path)}: holds no images ({', '.join(sorted(EXTENSIONS))})")
        return found, split is not None

    def sound(self, path: Path, found: list[Path], complain: Complain) -> list[Path]:
        if any(p.name in METADATA for p in found):
            return found
        top, _ = self._top(path)
        for file in found:
            if file.parent == top:
                complain(f"images: {self._shown(file, path)}: lies outside any class folder; move it into one")
        for folder in sorted(p for p in top.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))):
            if not any(file.is_relative_to(folder) for file in found):
                complain(f"images: {self._shown(folder, path)}: the class folder holds no images; remove it")
        names = self.selected((_spoken(p.parent.name) for p in found if p.parent != top), f"images: {self.path}")
        return [p for p in found if p.parent != top and _spoken(p.parent.name) in names]

    def rows(self, home: Path, found: Sequence[Path], scratch: Path) -> tuple[list[Row], bool]:
        table = hugging.load("imagefolder", found, scratch, f"images: {self.path}")
        what = f"images: {self.path}"
        captions = hugging.texts(table, hugging.find_column(table, self.caption, CAPTION_COLUMNS, what), (), what)
        column = hugging.find_column(table, self.label, LABEL_COLUMNS, what)
        classes = hugging.texts(table, column, self.classes, what)
        rows = []
        for image, caption, name in zip(table["image"], captions, classes, strict=True):
            file = Path(image["path"])
            shown, spoken = self._shown(file, home), name
            if name and column == "label":  # a folder's name
                spoken = _spoken(name)
            group = (Path(self.drawn_as or self.path) / file.relative_to(home)).as_posix()
            rows.append(Row(shown, group, caption, spoken, file.read_bytes))
        return sorted(rows, key=lambda row: row.id), False

    def _top(self, path: Path) -> tuple[Path, str | None]:
        """Where the class folders lie, and the name of the split that this is, if there are splits."""
        splits = given_splits([p.name for p in path.iterdir() if p.is_dir()])
        split = pick(splits, self.split, f"images: {self.path}")
        return (path / split if split else path), split

    def _shown(self, file: Path, path: Path) -> str:
        return (Path(self.path) / file.relative_to(path)).as_posix()


def _spoken(folder: str) -> str:
    """The class that a folder is named after."""
    return folder.replace("_", " ")


def _walk(folder: Path) -> list[Path]:
    """All files below a folder, except hidden ones and what archive programs leave behind."""
    found = []
    for parent, names, entries in os.walk(folder):
        names[:] = sorted(n for n in names if not n.startswith((".", "__")))
        found += [Path(parent, entry) for entry in entries if not entry.startswith(".")]
    return found
