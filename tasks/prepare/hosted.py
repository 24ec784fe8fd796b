"""What sources of published data sets share: a place on a hub or a folder, splits by name, pins, licences, counts.

All files that are read are raw files afterwards, beside a record of where they came from: the repository, its commit,
and bytes and SHA-256 of each file.
"""

from __future__ import annotations

import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from tasks.model.datasets import Origin
from tasks.prepare import files, tars
from tasks.prepare.places import Folder, Place
from tasks.prepare.published import Fetched, PublishedSource
from tasks.prepare.source import Outside
from tasks.progress import silent
from tasks.storage import hub
from tasks.storage.cards import CARD, front_matter, licence, texts_of
from tasks.text import shortened
from tasks.units import counted, size


@dataclass(frozen=True)
class FileChoice:
    """What of a place is read."""

    split: str
    files: tuple[str, ...]
    """Files of samples, in their order; as many are taken as the selection needs."""
    beside: tuple[str, ...] = ()
    """Files that say something of the samples."""
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What reading needs to know besides; JSON."""


@dataclass(frozen=True)
class Part:
    """What is read of a file, where that isn't all of it: row groups of a Parquet file, or samples of a tar file."""

    what: str
    """As the data card says it: ``row groups 0, 3``."""
    bytes: int
    kept: Path | None = None
    """A file that has it already, and may be moved away."""
    groups: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    """The number of each row group's first row in the whole file, counted from 1."""
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Needed:
    """The files that a selection needs."""

    files: list[str]
    notes: list[str] = field(default_factory=list)
    parts: Mapping[str, Part] = field(default_factory=dict)
    """Files that are read in part."""
    made: Mapping[str, Path] = field(default_factory=dict)
    """Files that were made for what is read, and may be moved beside it, by their names there."""


class Hosted(PublishedSource):
    """A published data set whose files lie on a hub, or in a folder of the same layout."""

    @abstractmethod
    def address(self, project: Path) -> hub.Address | None:
        """The repository that is meant; None for a folder of the user's.

        Raises:
            UserError: it is no address.
        """

    @abstractmethod
    def choose(self, place: Place, outside: Outside) -> FileChoice:
        """Which files are read; may bring small ones.

        Raises:
            UserError: the place has no such split, or is no data set of this kind.
        """

    def needed(self, chosen: FileChoice, place: Place, outside: Outside) -> Needed:
        """Those of the chosen files that the selection needs, and notes on the others.

        Files may be brought for it, and made in ``outside.cache``, which is there for this fetch alone.
        """
        if self.first is None:
            archives = [name for name in chosen.files if name.endswith(".tar")]
            bytes_of_all = size(sum(place.sizes.get(name, 0) for name in archives))
            whole = f"tar files have no index of classes, so {share(len(archives), len(archives), 'file')} "
            return Needed(list(chosen.files), [f"{whole}({bytes_of_all}) read"] if self.only and archives else [])
        taken: list[str] = []
        parts: dict[str, Part] = {}
        samples = 0
        for name in chosen.files:
            taken.append(name)
            if start := self._start(name, place, self.first - samples, outside):
                parts[name] = start
                break
            samples += self.samples_in(place.bring([name], outside.progress) / name, outside)
            if samples >= self.first:
                break
        note = f"the first {self.first} samples: {share(len(taken), len(chosen.files), 'file')} read"
        read = sum(parts[name].bytes if name in parts else place.sizes.get(name, 0) for name in taken)
        of_all = f" ({size(read)} of {size(sum(place.sizes.get(name, 0) for name in chosen.files))})"
        return Needed(taken, [note + (of_all if parts else "")], parts)

    def priced(self, chosen: FileChoice, place: Place, outside: Outside) -> Needed:
        """What `needed` says, as far as it can be said before a run, in which no data are fetched."""
        return Needed(list(chosen.files)) if self.first is not None else self.needed(chosen, place, outside)

    def _start(self, name: str, place: Place, samples: int, outside: Outside) -> Part | None:
        """The start of a tar file of a hub that has so many samples and more after them; None where all is needed."""
        if not isinstance(place, hub.Snapshot) or not name.endswith(".tar"):
            return None
        target = outside.cache / "start.tar"
        with place.opened(name) as file:
            count = tars.start(file, samples, target, f"{self.what}: {name}")
        return None if count is None else Part(f"the first {count} samples", target.stat().st_size, target)

    def keep_part(self, name: str, part: Part, place: Place, home: Path) -> None:  # noqa: ARG002 - other kinds read the place
        """Keep that part of a file as a file of the same name, whose bytes are not the whole file's."""
        assert part.kept is not None
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(part.kept, home / name)

    def samples_in(self, file: Path, outside: Outside) -> int:
        """The number of samples of a file; of another than a tar file, the kind says it."""
        with tempfile.TemporaryDirectory(dir=outside.cache) as scratch:
            return len(tars.read(file, Path(scratch), self.what, outside.limits.drop_bytes).samples)

    def place(self, project: Path) -> Place:
        """The files there are.

        Raises:
            UserError: the repository or folder does not exist, or access is refused.
            UnavailableError: the hub does not answer, and its cache on this machine lacks the repository.
        """
        address = self.address(project)
        return hub.look(address) if address else Folder.of(project / self.path, self.what)

    def pinned(self, project: Path) -> Self:
        """The same source at the commit that its repository is at now; of a folder, itself.

        Raises:
            UserError, UnavailableError: as `place`.
        """
        if not isinstance(place := self.place(project), hub.Snapshot):
            return self
        return self.model_copy(update={"path": str(replace(place.address, revision=place.commit))})

    def check(self, project: Path) -> None:
        if self.address(project) is None:
            place = Folder.of(project / self.path, self.what)
            self.choose(place, Outside(project, project, 0, silent))

    def wanted(self, outside: Outside) -> tuple[hub.Snapshot, dict[str, int]] | None:
        """The repository, and the files that a fetch takes with their bytes (of `first`, at most); None for a folder.

        Raises:
            UserError, UnavailableError: as `place` and `choose`.
        """
        place = self.place(outside.project)
        if not isinstance(place, hub.Snapshot):
            return None
        chosen = self.choose(place, outside)
        needed = self.priced(chosen, place, outside)
        sizes = {name: place.sizes.get(name, 0) for name in [*needed.files, *chosen.beside]}
        return place, sizes | {name: part.bytes for name, part in needed.parts.items()}

    def fetch(self, into: Path, outside: Outside) -> None:
        with tempfile.TemporaryDirectory(dir=into, prefix=".parts-") as scratch:
            self._fetch(into, replace(outside, cache=Path(scratch)))

    def _fetch(self, into: Path, outside: Outside) -> None:
        place = self.place(outside.project)
        chosen = self.choose(place, outside)
        needed = self.needed(chosen, place, outside)
        beside = [*chosen.beside, *([CARD] if CARD in place.names else [])]
        whole = list(dict.fromkeys([*(name for name in needed.files if name not in needed.parts), *beside]))
        folder = place.bring(whole, outside.progress) if whole else into
        home = into / self.store
        for done, name in enumerate(whole, start=1):
            files.copy(folder / name, home / name)
            outside.progress(f"copying {self.path}", done, len(whole))
        for done, (name, part) in enumerate(needed.parts.items(), start=1):
            self.keep_part(name, part, place, home)
            outside.progress(f"downloading parts of {self.path}", done, len(needed.parts))
        for name, file in needed.made.items():
            shutil.move(file, home / name)
        record = Fetched(split=chosen.split, files=needed.files, facts=dict(chosen.facts))
        if isinstance(place, hub.Snapshot):
            record.origin = {"address": str(place.address), **place.pin([*whole, *needed.parts], home).as_dict()}
            record.origin |= {"parts": _described(needed.parts, place)} if needed.parts else {}
        card = front_matter(home / CARD)
        record.licence, record.attribution = licence(card), _attribution(card, record.origin)
        (into / f"{self.store}.json").write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for note in (*chosen.notes, *needed.notes):
            outside.note(f"{self.what}: {note}")

    def origin(self, raw: Path) -> Origin:
        record = self.record(raw)
        licence = self.licence or record.licence or "unknown"
        attribution = self.attribution or record.attribution
        if record.origin is None:
            return Origin(self.path, licence, attribution)
        parts = record.origin.get("parts", {})
        pinned = tuple(
            (name + (f" ({parts[name]['what']})" if name in parts else ""), f["size"], f["sha256"])
            for name, f in sorted(record.origin["files"].items())
        )
        return Origin(f"hf:{record.origin['repository']}@{record.origin['commit']}", licence, attribution, pinned)


def share(some: int, of: int, noun: str) -> str:
    """``3 of 5 files``, ``all 5 files``, ``1 file``."""
    if some != of:
        return f"{some} of {counted(of, noun)}"
    return counted(of, noun) if of == 1 else f"all {counted(of, noun)}"


def _described(parts: Mapping[str, Part], place: hub.Snapshot) -> dict[str, Any]:
    """What is kept of files that are kept in part, and size and SHA-256 of the hub's whole file."""
    made, hashes = {}, place.stated_hashes(list(parts))
    for name, part in parts.items():
        whole = hashes.get(name, "")
        made[name] = {
            "groups": part.groups, "starts": part.starts, "size": place.sizes[name], "sha256": whole,
            "what": f"{part.what} of the file with SHA-256 {whole or 'unknown'}",
        }  # fmt: skip
    return made


def _attribution(card: Mapping[str, Any], origin: Mapping[str, Any] | None) -> str:
    parts = [*texts_of(card.get("pretty_name")), *([f"hf:{origin['repository']}"] if origin else [])]
    return shortened(", ".join(parts), 300) if parts else ""
