"""``images``: a folder of image files; the folder that an image lies in is its class.

Short form ``images:PATH``, ``images:PATH#train``, ``images:PATH#test``; settings: `Photographs`, and ``class_level``:
where images lie in folders within folders, at different depths, whether the ``first`` folder or the ``last`` is the
class. Given parts are two folders ``train`` and ``test`` (or validation, dev) at the top, or one of them alone. A
metadata.csv, .jsonl or .parquet with a column ``file_name`` gives captions or classes instead, and parts in a column
``split``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from tasks.errors import UserError
from tasks.prepare import files, listing, tables
from tasks.prepare.image_source import Row, Rows
from tasks.prepare.photographs import Photographs, Selection, other_parts, part_of_rows
from tasks.prepare.source import Complain, Context, refuse
from tasks.prepare.splits import Parts, likely_part, parts_among, refuse_likely_parts

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_COLUMNS = ("file_name", "image_file_name", *tables.IMAGE)


class Images(Photographs):
    """Folders of image files: ``images:PATH``, ``images:PATH#train``; the folder of an image is its class, or a table
    (metadata.csv, .jsonl or .parquet) gives captions or classes."""

    name: ClassVar[str] = "images"

    class_level: Literal["first", "last"] | None = None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir() and any(listing.is_image(file) for file in listing.walk(path))

    def find(self, path: Path) -> Selection:
        if not path.is_dir():
            raise UserError(f"images: {self.path}: not a folder")
        parts = self._parts(path)
        name = parts.pick(self.split, f"images: {self.path}")
        top = path / name if name else path
        there = listing.walk(top)
        files = [file for file in there if listing.is_image(file) or file.name in METADATA]
        beside = [] if name is None else [
            file
            for entry in sorted(path.iterdir())
            if not listing.is_hidden(entry.name) and entry.name not in (*parts.names.values(), *parts.others)
            for file in (listing.walk(entry) if entry.is_dir() else [entry])
        ]  # fmt: skip
        left = (*(file for file in there if file not in set(files)), *beside)
        if not files:
            sentence = listing.left_out(left)
            raise UserError(
                f"images: {self.shown(top, path)}: holds no images ({', '.join(sorted(listing.image_extensions()))})"
                + (f"; {sentence}" if sentence else "")
            )
        return Selection(sorted(files), name is not None, left, other_parts(parts))

    def _parts(self, path: Path) -> Parts:
        """The parts among the folders at the top; a train or a test folder alone is one where it holds folders only."""
        names = [entry.name for entry in path.iterdir() if entry.is_dir() and not listing.is_hidden(entry.name)]
        parts = parts_among(names)
        if not parts.complete and self.class_level is None:
            likely = (name for name in names if likely_part(name) and _holds_folders(path / name))
            refuse_likely_parts(likely, f"images: {self.path}")
        if parts.complete or not parts.names:
            return parts
        (name,) = parts.names.values()
        if not _holds_folders(path / name):
            return Parts({})
        if len(names) == 1:
            return parts
        if self.split is not None:
            others = ", ".join(sorted(one for one in names if one != name))
            raise UserError(
                f"images: {self.path}: has the part {name}, and beside it the folders {others}; which of them are the "
                "other part? Name one path for each part"
            )
        return Parts({})

    def sound(self, path: Path, files: list[Path], complain: Complain) -> list[Path]:
        if any(file.name in METADATA for file in files):
            return files
        top = self._top(path)
        inside = [file for file in files if file.parent != top]
        loose = [file for file in files if file.parent == top]
        if loose and not inside:
            complain(
                f"images: {self.shown(top, path)}: holds {len(loose)} images and no class folders; move each into a "
                "folder of its class's name, or add a metadata.csv with the columns file_name and caption"
            )
            return []
        for file in loose:
            complain(f"images: {self.shown(file, path)}: lies outside any class folder; move it into one")
        folders = sorted(entry for entry in top.iterdir() if entry.is_dir() and not listing.is_hidden(entry.name))
        for folder in folders:
            if not any(file.is_relative_to(folder) for file in files):
                complain(f"images: {self.shown(folder, path)}: the class folder holds no images; remove it")
        if mixed := self._mixed_depths(inside, top, path):
            complain(mixed)
            return []
        if nested := self._one_class(inside, top):
            complain(nested)
            return []
        names = self.selected((self._class_of(file, top) for file in inside), f"images: {self.path}")
        return [file for file in inside if self._class_of(file, top) in names]

    def at_most(self, project: Path) -> int | None:
        path = project / self.path
        if not path.is_dir():  # it comes out of the store
            return None
        files = self.sound(path, self.find(path).files, refuse)
        return None if any(file.name in METADATA for file in files) else len(files)

    def _mixed_depths(self, inside: Sequence[Path], top: Path, path: Path) -> str | None:
        """What is wrong where images lie at different depths and nobody has said which folder is the class."""
        by_depth = {len(file.relative_to(top).parts): file for file in reversed(inside)}
        if len(by_depth) < 2 or self.class_level:
            return None
        shallow, deep = by_depth[min(by_depth)], by_depth[max(by_depth)]
        first, last = spoken(deep.relative_to(top).parts[0]), spoken(deep.parent.name)
        return (
            f"images: {self.path}: images lie at different depths ({self.shown(shallow, path)} and "
            f"{self.shown(deep, path)}): the class of the second is {first!r} with class_level: first, and {last!r} "
            f"with class_level: last; write {{source: images, path: {self.path}, class_level: first}}"
        )

    def _one_class(self, inside: Sequence[Path], top: Path) -> str | None:
        """What is wrong where each of several folders has its images in a folder of the same name, as in cat/images."""
        firsts = sorted({file.relative_to(top).parts[0] for file in inside})
        names = {file.parent.name for file in inside}
        if self.class_level or len(names) > 1 or len(firsts) < 2:
            return None
        name, path = spoken(names.pop()), self.path
        return (
            f"images: {path}: all images lie in folders called {name!r}, in {', '.join(firsts[:3])}"
            f"{', …' * (len(firsts) > 3)}: these are the classes with class_level: first, and {name!r} is the only one "
            f"with class_level: last; write {{source: images, path: {path}, class_level: first}}"
        )

    def _class_of(self, file: Path, top: Path) -> str:
        return spoken(file.relative_to(top).parts[0] if self.class_level == "first" else file.parent.name)

    def rows(self, home: Path, files: Sequence[Path], context: Context) -> Rows:
        metadata = [file for file in files if file.name in METADATA]
        images = [file for file in files if file.name not in METADATA]
        notes: list[str] = []
        given = False
        if metadata:
            rows, notes, given = self._described(home, metadata, images, context)
        else:
            for column in (self.caption, self.label):
                if column is not None:
                    raise UserError(f"images: {self.path}: no column {column!r}; there is no metadata.csv")
            top = self._top(home)
            of_file = {file: self._class_of(file, top) for file in images}
            names = sorted(set(of_file.values()))
            if self.class_level is None and (sentence := self._of_several_folders(images, top)):
                notes.append(sentence)
            if self.classes:
                renamed = self._named(names)
                rows = [self._row(home, file, None, renamed[name]) for file, name in of_file.items()]
            else:
                rows = [self._row(home, file, None, name) for file, name in of_file.items()]
                if names and all(name.isdecimal() for name in names):
                    notes.append(
                        f"its class folders are numbers ({', '.join(names[:3])}{', …' * (len(names) > 3)}), and so are "
                        "the classes; if they stand for names, give these as classes: [...], counted from 0"
                    )
        return Rows(sorted(rows, key=lambda row: row.id), given, tuple(notes))

    def _of_several_folders(self, images: Sequence[Path], top: Path) -> str | None:
        """A sentence on classes whose images come from folders of several others; None where there are none."""
        homes: dict[str, set[str]] = {}
        for image in images:
            homes.setdefault(spoken(image.parent.name), set()).add(image.relative_to(top).parts[0])
        shared = {name: sorted(firsts) for name, firsts in sorted(homes.items()) if len(firsts) > 1}
        if not shared:
            return None
        name, firsts = next(iter(shared.items()))
        return (
            f"{len(shared)} of {len(homes)} classes are folders in several others ({name!r} in {', '.join(firsts[:3])}"
            f"{', …' * (len(firsts) > 3)}); with class_level: first the classes are these"
        )

    def _named(self, folders: Sequence[str]) -> dict[str, str]:
        """Class folder → its name among `classes`: a number counts into them, others have the place they are sorted to.

        Raises:
            UserError: there are more or fewer names than folders, or they are the folders' own in another order.
        """
        what = f"images: {self.path}"
        if folders and all(folder.isdecimal() for folder in folders):
            named = tables.as_class_names(map(int, folders), self.classes, f"{what}: class folders")
            return {folder: name for folder, name in zip(folders, named, strict=True) if name is not None}
        if len(folders) != len(self.classes):
            shown = ", ".join(folders[:3]) + ", …" * (len(folders) > 3)
            raise UserError(
                f"{what}: classes has {len(self.classes)} names, and there are {len(folders)} class folders ({shown}); "
                "give one for each, in the order of the folders' names"
            )
        renamed = dict(zip(folders, map(str, self.classes), strict=True))
        if moved := [folder for folder, name in renamed.items() if folder != name and folder in self.classes]:
            raise UserError(
                f"{what}: classes has {moved[0]!r} at another place than the folder of that name has in the order of "
                "names; leave classes out, or give them in that order"
            )
        return renamed

    def _described(
        self, home: Path, metadata: Sequence[Path], images: Sequence[Path], context: Context
    ) -> tuple[list[Row], list[str], bool]:
        """The images that metadata files name, each relative to its own folder; notes on the others; and whether the
        images are those of one part by a column."""
        rows: list[tuple[Row, str | None]] = []
        splits: list[str | None] = []
        notes: list[str] = []
        known, named = set(images), set[Path]()
        for file in metadata:
            what = f"images: {self.shown(file, home)}"
            table = tables.load([file], context.scratch, what, context.limits.cell_characters)
            notes += tables.notes(table)
            column = tables.find(table, None, FILE_COLUMNS, what)
            if column is None:
                raise UserError(f"{what}: no column file_name among {', '.join(table.column_names)}")
            captions = tables.caption_lists(table, tables.find(table, self.caption, tables.CAPTION, what), what)
            label = tables.find(table, self.label, tables.LABEL, what)
            classes = tables.class_names(table, label, self.classes, what)
            part_column = tables.find(table, None, ("split",), what)
            parts = tables.captions(table, part_column, what)
            splits += parts
            for number, (name, several, label_text, part) in enumerate(
                zip(table[column], captions, classes, parts, strict=True), start=1
            ):
                image = file.parent / str(name or "").replace("\\", "/")
                if image not in known:
                    context.complain(f"{what}:{number}: names the image {name!r}, and there is no such image")
                    continue
                named.add(image)
                class_name = spoken(label_text) if label_text and label == "label" else label_text
                rows += [(row, part) for row in self._row(home, image, None, class_name).with_captions(several)]
        if sentence := listing.left_out(known - named):
            notes.append(
                f"{sentence}: images that {' and '.join(dict.fromkeys(t.name for t in metadata))} does not name"
            )
        chosen, outside = part_of_rows(splits, self)
        return [row for row, part in rows if chosen in (None, part)], [*notes, *outside], chosen is not None

    def _row(self, home: Path, file: Path, caption: str | None, name: str | None) -> Row:
        group = (Path(self.drawn_as or self.path) / file.relative_to(home)).as_posix()
        return Row(self.shown(file, home), group, caption, name, partial(files.image, file))

    def _top(self, path: Path) -> Path:
        """Where the class folders lie."""
        name = self._parts(path).pick(self.split, f"images: {self.path}")
        return path / name if name else path


def _holds_folders(folder: Path) -> bool:
    """Whether images below a folder lie in folders of it, so that it is no class itself."""
    return all(file.parent != folder for file in listing.walk(folder) if listing.is_image(file))


def spoken(folder: str) -> str:
    """The class that a folder is named after."""
    return folder.replace("_", " ")
