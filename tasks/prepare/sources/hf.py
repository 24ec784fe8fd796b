"""``hf``: a data set of a hub, in Parquet, as folders of images, or in WebDataset tar files.

Short form ``hf:ORG/NAME[@REVISION][/CONFIGURATION]#SPLIT``. Which files are which split is what ``datasets`` says, by
the repository's card and the names of its files. Settings: `Hosted`, and ``image``, ``label`` and ``caption``: the
columns (or members of tar files) of images, classes and captions, by default those of usual names, or the only ones of
their kind. Numbered classes get their names from ``classes``, the Parquet file or the card. A caption column may hold
lists: each caption is a sample. Scripts of a repository are not run.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Self

from pydantic import field_validator

from tasks.errors import UserError
from tasks.prepare import layouts, listing, parquet, tables
from tasks.prepare.hosted import FileChoice, Hosted, Needed, Part, share
from tasks.prepare.image_source import Row, Rows
from tasks.prepare.places import Place, left_out, pick
from tasks.prepare.source import Context, Outside
from tasks.prepare.sources.images import METADATA, Images, spoken
from tasks.prepare.sources.webdataset import WebDataset
from tasks.storage import hub
from tasks.storage.cards import CARD, CARD_BYTES
from tasks.text import shortened


class HubDataset(Hosted):
    """A data set of a hub: ``hf:ORG/NAME[@REVISION][/CONFIGURATION]#SPLIT``, in Parquet, folders of images or
    WebDataset."""

    name: ClassVar[str] = "hf"

    image: str | None = None
    """Name of the column of images; by default a usual one, or the only one."""
    caption: str | None = None
    """Name of the column of captions; by default a usual one."""
    label: str | None = None
    """Name of the column of classes; by default a usual one, or the only one."""

    @field_validator("path")
    @classmethod
    def _without_scheme(cls, value: str) -> str:
        for scheme in hub.SCHEMES:
            value = value.removeprefix(scheme)
        return value

    def address(self, project: Path) -> hub.Address:  # noqa: ARG002 - always a hub
        return hub.parse(f"hf:{self.path}", "dataset")

    def pinned(self, project: Path) -> Self:
        path = super().pinned(project).path
        return self.model_copy(update={"path": path.removeprefix(hub.SCHEMES[0])})

    def check(self, project: Path) -> None:
        self.address(project)

    def choose(self, place: Place, outside: Outside) -> FileChoice:
        address = self.address(outside.project)
        layouts.refuse_scripts(place.names, address.repository, self.what)
        layout = layouts.layout(place.names, self._card(place, outside), address.file, self.what)
        split, note = pick(list(layout.splits), self.split, self.what)
        files = layout.splits[split]
        if not files:
            raise UserError(f"{self.what}: the split {split} has no files")
        of_splits = {name for names in layout.splits.values() for name in names}
        notes = [
            note,
            f"reads the configuration {layout.config}; there are {shortened(', '.join(layout.others), 200)} too"
            if layout.others
            else None,
            left_out(place, {*of_splits, *layout.of_others, CARD}, ()),
        ]
        if layout.form == "imagefolder":
            self._require_class_folders(files)
        facts = {"form": layout.form, "classes": layout.classes, "columns": layout.columns}
        return FileChoice(split, files, (), tuple(one for one in notes if one), facts)

    def _card(self, place: Place, outside: Outside) -> str:
        if CARD not in place.names or place.sizes.get(CARD, 0) > CARD_BYTES:
            return ""
        return (place.bring([CARD], outside.progress) / CARD).read_text(encoding="utf-8", errors="replace")

    def _require_class_folders(self, files: Sequence[str]) -> None:
        """Images without metadata lie in folders of their classes, all at one depth, as ``datasets`` wants it.

        Raises:
            UserError: they do not.
        """
        images = [PurePosixPath(name) for name in files if listing.is_image(Path(name))]
        if not images:
            raise UserError(f"{self.what}: the split has no images that are read")
        if any(PurePosixPath(name).name in METADATA for name in files):
            return
        depths = {len(path.parts): path for path in reversed(images)}
        if len(depths) > 1:
            shallow, deep = depths[min(depths)], depths[max(depths)]
            raise UserError(
                f"{self.what}: images lie at different depths ({shallow} and {deep}), so which folders are classes is "
                "unknown; fetch the repository, and read it with images: and class_level"
            )
        if len({path.parent for path in images}) == 1:
            raise UserError(
                f"{self.what}: its images lie in one folder ({images[0].parent}), without metadata, so they have "
                "neither classes nor captions"
            )

    def needed(self, chosen: FileChoice, place: Place, outside: Outside) -> Needed:
        form = chosen.facts["form"]
        if form == "imagefolder" and (self.only or self.first):
            return self._needed_images(chosen)
        if form == "parquet" and (self.only or self.first):
            return self._needed_tables(chosen, place, outside)
        return super().needed(chosen, place, outside)

    def _needed_images(self, chosen: FileChoice) -> Needed:
        beside = [name for name in chosen.files if PurePosixPath(name).name in METADATA]
        images = [name for name in chosen.files if listing.is_image(Path(name))]
        if beside:  # which image is of which class, they say
            return Needed(list(chosen.files))
        if self.first is not None:
            taken = images[: self.first]
            return Needed(taken, [f"the first {self.first} samples: {share(len(taken), len(images), 'file')} read"])
        self.selected((spoken(PurePosixPath(name).parent.name) for name in images), self.what)
        taken = [name for name in images if spoken(PurePosixPath(name).parent.name) in self.only]
        return Needed(taken, [f"the classes of only: {share(len(taken), len(images), 'file')} read"])

    def _needed_tables(self, chosen: FileChoice, place: Place, outside: Outside) -> Needed:
        """The Parquet files and their row groups that the selection needs; the files' ends alone are looked at."""
        assert isinstance(place, hub.Snapshot)
        parts: dict[str, Part] = {}
        taken: list[str] = []
        columns: parquet.Columns | None = None
        groups = read = rows = 0
        for done, name in enumerate(chosen.files, start=1):
            if self.first is not None and rows >= self.first:
                break
            with place.opened(name) as file, parquet.opened(file, f"{self.what}: {name}") as table:
                columns = columns or self._columns(table.schema_arrow, chosen.facts["classes"])
                needed = (
                    parquet.groups(table, columns, self.only) if self.only else parquet.first(table, self.first, rows)
                )
                rows += sum(table.metadata.row_group(number).num_rows for number in needed)
                if needed:
                    taken.append(name)
                    groups, read = groups + table.metadata.num_row_groups, read + len(needed)
                if 0 < len(needed) < table.metadata.num_row_groups:
                    starts = parquet.starts(table)
                    needed = [number for number in needed if table.metadata.row_group(number).num_rows]
                    parts[name] = Part(
                        f"row groups {shortened(', '.join(map(str, needed)), 100)}",
                        parquet.weight(table, columns, needed),
                        groups=tuple(needed),
                        starts=tuple(starts[number] for number in needed),
                        columns=tuple(columns.read),
                    )
            outside.progress(f"looking at {self.path}", done, len(chosen.files))
        if self.only and columns is not None and columns.classes:
            self.selected(columns.classes, self.what)
        if not taken:
            raise UserError(f"{self.what}: only names {', '.join(self.only)}, and no file has such a class")
        why = "the classes of only" if self.only else f"the first {self.first} samples"
        note = f"{why}: {share(len(taken), len(chosen.files), 'file')} read"
        return Needed(taken, [f"{note}, and {share(read, groups, 'row group')}"], parts)

    def keep_part(self, name: str, part: Part, place: Place, home: Path) -> None:
        if part.kept is not None:  # of a tar file
            super().keep_part(name, part, place, home)
            return
        assert isinstance(place, hub.Snapshot)
        with place.opened(name) as file, parquet.opened(file, f"{self.what}: {name}") as table:
            what = f"{self.what}: {name}"
            parquet.keep(table, part.groups, part.columns, place.sizes[name], home / name, what)

    def _columns(self, schema: Any, classes: Any) -> parquet.Columns:
        columns = parquet.columns(schema, self.image, self.label, self.caption, classes, self.what)
        if not self.classes:
            return columns
        return parquet.Columns(columns.image, columns.label, columns.caption, self.classes)

    def rows(self, home: Path, files: Sequence[Path], context: Context) -> Rows:
        facts = self.record(home.parent).facts
        if facts["form"] == "parquet":
            return self._rows_of_tables(home, files, context, facts)
        common: dict[str, Any] = {
            "drawn_as": hub.parse(f"hf:{self.path}").repository,  # shares are drawn by names without a revision
            "path": self.path, "caption": self.caption, "label": self.label, "template": self.template,
            "classes": self.classes or self._classes_of_card(facts),
        }  # fmt: skip
        if facts["form"] == "imagefolder":
            has_tables = any(file.name in METADATA for file in files)
            source = Images.model_validate(common if has_tables else {**common, "classes": self.classes})
            images = [file for file in files if listing.is_image(file) or file.name in METADATA]
            read = source.rows(home, images, context)
            sentence = listing.left_out(set(files) - set(images))
            notes = (*read.notes, *([sentence] if sentence else ()))
            return Rows(read.rows, given=True, notes=notes)
        read = WebDataset.model_validate({**common, "image": self.image}).rows(home, files, context)
        return Rows(read.rows, given=True, notes=read.notes)

    def _classes_of_card(self, facts: dict[str, Any]) -> tuple[str, ...]:
        """The names of classes that the card has for the column of classes."""
        classes: dict[str, list[str]] = facts["classes"]
        wanted = [self.label] if self.label else [*tables.LABEL, *(classes if len(classes) == 1 else ())]
        return next((tuple(classes[name]) for name in wanted if name in classes), ())

    def _rows_of_tables(self, home: Path, files: Sequence[Path], context: Context, facts: dict[str, Any]) -> Rows:
        with parquet.opened(files[0], f"{self.what}: {files[0].name}") as table:
            columns = self._columns(table.schema_arrow, facts["classes"])
            every = table.schema_arrow.names
        parts = (self.record(home.parent).origin or {}).get("parts", {})
        starts = {name: part["starts"] for name, part in parts.items()}
        cells = parquet.read(home, files, columns, self.only, self.first, context.scratch, self.what, starts)
        where = f"{self.what}: column"
        names = tables.as_class_names(cells.label, columns.classes, f"{where} {columns.label!r}")
        rows: list[Row] = []
        lacking: Counter[str] = Counter()
        for number, (file, row, name, caption) in enumerate(
            zip(cells.file, cells.row, names, cells.caption, strict=True)
        ):
            shown = f"{self.path}:{file}:{row}"
            load = partial(cells.image, number, shown)
            captions = tables.captions_of(caption, f"{where} {columns.caption!r}")
            if columns.label is not None and name is None and not captions:
                lacking["no class"] += 1
                continue
            if cells.images[number].as_py() is None:
                context.complain(f"{shown}: has no image")
                continue
            group = hashlib.sha256(load()).hexdigest() if self.share else ""
            rows += Row(shown, group, None, name, load).with_captions(captions)
        unread = [name for name in every if name not in columns.read]
        notes = [f"left out: {count} rows with {what}" for what, count in lacking.items()]
        if unread:
            notes.append(f"columns that are not read: {shortened(', '.join(unread), 200)}")
        return Rows(rows, given=True, notes=tuple(notes), classes=columns.classes if columns.label else ())
