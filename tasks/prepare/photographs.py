"""What all sources of a user's own images share: settings, train/test splits, what is copied."""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from pydantic import Field

from tasks.errors import UserError
from tasks.layout import is_there
from tasks.prepare import captured, files, listing
from tasks.prepare.image_source import ImageSource, Listing, Row
from tasks.prepare.source import Complain, Context, Outside, refuse
from tasks.prepare.splits import Parts, Split, drawn, parts_among, parts_of_files
from tasks.text import shortened


@dataclass(frozen=True)
class Selection:
    """What a source reads of a user's place, and what it leaves out."""

    files: list[Path]
    """Sorted."""
    given: bool = False
    """Whether they are one of the parts that the source comes with."""
    left_out: tuple[Path, ...] = ()
    """Files that are not read, and that no other part reads."""
    notes: tuple[str, ...] = ()


class Photographs(ImageSource):
    """Settings of a source of a user's own images; short form ``kind:PATH``, ``kind:PATH#train``, ``kind:PATH#test``.

    Where the data come with a train or a test part, ``split`` picks one, complete. Where they come with neither, it
    draws one, and a note says so: ``fraction`` of the images, chosen by a hash of each one's name and the seed, are the
    test part, and what is added later moves nothing. ``share`` draws from the part that is picked, or from all:
    ``kind:PATH#train[:80%]``. Without ``split`` and ``share``, all images are used.
    """

    drawn_as: str | None = None
    """The path that a drawn split goes by, where the files have come from there; by default ``path``."""
    split: Split | None = None
    fraction: float = Field(default=0.2, gt=0, lt=1)
    caption: str | None = None
    """Name of the column of captions; by default a usual one."""
    label: str | None = None
    """Name of the column of classes (names, or numbers into ``classes``); by default a usual one."""

    @property
    def store(self) -> str:
        """Folder name of these files among the raw files of this kind."""
        readable = re.sub(r"[^A-Za-z0-9]+", "-", PurePath(self.path).name).strip("-")
        selected = json.dumps([self.path, *self.only]) if self.only else self.path
        digest = hashlib.sha256(selected.encode()).hexdigest()[:8]
        return f"{readable}-{digest}-{self.split or 'all'}"

    def location(self, project: Path) -> Path:
        """Where the user has the data.

        Raises:
            UserError: there's nothing.
        """
        path = project / self.path
        if not is_there(path):
            pointer = captured.pointer(project, self.path)
            wanted = f"; `dvc pull {pointer.relative_to(project)}` brings it" if pointer else ""
            raise UserError(f"{self.name}: {shortened(self.path, 300)}: no such file or folder{wanted}")
        return path

    def check(self, project: Path) -> None:
        if not is_there(project / self.path) and captured.pointer(project, self.path):
            return  # it was looked at as it arrived, and comes out of the store when its step runs
        path = self.location(project)
        self.sound(path, self._regular(path, self.find(path).files, refuse), refuse)

    @abstractmethod
    def find(self, path: Path) -> Selection:
        """The files of the part that was asked for, at the user's place.

        Raises:
            UserError: there are none, or there are parts and none was picked.
        """

    def sound(self, path: Path, files: list[Path], complain: Complain) -> list[Path]:  # noqa: ARG002 - most kinds agree
        """Those of the files found at the user's ``path`` that can be read as what they are; the rest is complained of.

        What `only` leaves out need not be among them.
        """
        return files

    def at_most(self, project: Path) -> int | None:
        path = project / self.path
        if not is_there(path):  # it comes out of the store
            return None
        counts = [self.at_most_in(file) for file in self._regular(path, self.find(path).files, refuse)]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def at_most_in(self, file: Path) -> int | None:  # noqa: ARG002 - of a kind that counts its files otherwise
        """The largest number of samples in one file, where a look at it tells; else None."""
        return None

    def _regular(self, path: Path, files: list[Path], complain: Complain) -> list[Path]:
        """Those of some files that are regular files of readable names; the rest is complained of."""
        regular = []
        for file in files:
            if problem := listing.fault(file):
                complain(f"{self.name}: {self.shown(file, path)}: {problem}")
            else:
                regular.append(file)
        return regular

    def shown(self, file: Path, path: Path) -> str:
        """What messages call a file at the user's ``path``: as params.yaml names it."""
        return Path(self.path).as_posix() if file == path else (Path(self.path) / file.relative_to(path)).as_posix()

    def fetch_more(self, home: Path, fetched: Sequence[Path], target: Path, outside: Outside) -> Collection[Path]:  # noqa: ARG002
        """Copy what the fetched files refer to; returns the files copied."""
        return ()

    def fetch(self, into: Path, outside: Outside) -> None:
        path = self.location(outside.project)
        selection = self.find(path)
        usable = self.sound(path, self._regular(path, selection.files, outside.complain), outside.complain)
        home = path if path.is_dir() else path.parent
        (into / self.store).mkdir(parents=True, exist_ok=True)
        for done, file in enumerate(usable, start=1):
            files.copy(file, into / self.store / file.relative_to(home))
            outside.progress(f"copying {self.path}", done, len(usable))
        more = {os.path.realpath(file) for file in self.fetch_more(home, usable, into / self.store, outside)}
        record = Listing(given=selection.given, files=[file.relative_to(home).as_posix() for file in usable])
        (into / f"{self.store}.json").write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        sentence = listing.left_out(file for file in selection.left_out if os.path.realpath(file) not in more)
        for note in (*selection.notes, *([sentence] if sentence else ())):
            outside.note(f"{self.name}: {self.path}: {note}")

    def moved(self, raw: Path, folder: Path, path: str) -> Photographs:
        """Move the raw copies that `fetch` left in ``raw`` to ``folder``, which a project has at ``path``.

        Returns the source that reads the very same samples from there, without the files of another split.
        """
        listed = self.fetched(raw)
        folder.parent.mkdir(parents=True, exist_ok=True)
        (raw / self.store).rename(folder)
        given = listed.given
        tops = {name.split("/")[0] for name in listed.files}
        if given and len(tops) == 1 and (folder / min(tops)).is_dir():
            path = f"{path}/{min(tops)}"
        drawn_as = (self.drawn_as or self.path) if self.share or (self.split and not given) else None
        return self.model_copy(update={"path": path, "split": None if given else self.split, "drawn_as": drawn_as})

    def fetched(self, raw: Path) -> Listing:
        path = raw / f"{self.store}.json"
        try:
            return Listing.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(f"{path}: missing or damaged; fetch the arrival again") from None

    def _drawn(self, rows: list[Row], context: Context, *, given: bool, what: str) -> list[Row]:
        if self.share is not None and self.split == "test" and not given:
            raise UserError(f"{what}: has no test part; draw one from all of it with #train[80%:]")
        if self.share is not None or self.split is None or given:
            return super()._drawn(rows, context, given=given, what=what)
        chosen = [row for row in rows if drawn(row.group, context.seed, self.fraction) == self.split]
        asked = f"it comes without a train and a test part, so #{self.split} is a drawn share"
        context.note(f"{what}: {asked}: {len(chosen)} of {len(rows)} samples")
        return chosen


def part_of_files(files: list[Path], source: Photographs) -> Selection:
    """Those of some files whose names begin with the part that was asked for; what is in no part is left out."""
    what = f"{source.name}: {source.path}"
    parts, of_file = parts_of_files(files, what)
    name = parts.pick(source.split, what)
    if name is None:
        return Selection(files)
    outside_parts = [file for file in files if of_file[file] is None]
    return Selection(
        [file for file in files if of_file[file] == name],
        given=True,
        notes=(*other_parts(parts), *(f"left out: {file.name}, which is of no part" for file in outside_parts)),
    )


def part_of_rows(splits: Sequence[str | None], source: Photographs) -> tuple[str | None, list[str]]:
    """The word in the column of parts that was asked for, and notes on rows of no part; None where all rows are read.

    Raises:
        UserError: there are parts and none was picked, or the column has words and none of them means a part.
    """
    what = f"{source.name}: {source.path}"
    words = list(dict.fromkeys(word for word in splits if word))
    parts = parts_among(words)
    if source.split and words and not parts.names:
        raise UserError(
            f"{what}: has a column of parts and no {source.split} part in it, only "
            f"{shortened(', '.join(map(repr, words)), 80)}; write train and test there, or leave #{source.split} out"
        )
    chosen = parts.pick(source.split, what) if source.split or parts.complete else None
    if chosen is None:
        return None, []
    known = {*parts.names.values(), *parts.others}
    others = Counter(word for word in splits if word not in known)
    outside = [f"left out: {count} rows whose split is {word!r}" for word, count in sorted(others.items(), key=str)]
    return chosen, [*other_parts(parts), *outside]


def other_parts(parts: Parts) -> tuple[str, ...]:
    """A note on parts that neither ``#train`` nor ``#test`` reads."""
    if not parts.others:
        return ()
    return (f"left out: {', '.join(parts.others)}, for #test reads {parts.names['test']}",)
