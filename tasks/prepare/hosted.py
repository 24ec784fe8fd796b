"""What sources of published data sets share: a place on a hub or a folder, splits by name, pins, licences, counts.

All files that are read are raw files afterwards, beside a record of where they came from: the repository, its commit,
and bytes and SHA-256 of each file.
"""

from __future__ import annotations

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

    def needed(self, chosen: FileChoice, place: Place, outside: Outside) -> tuple[list[str], list[str]]:
        """Those of the chosen files that the selection needs, and notes on the others. Files may be brought for it."""
        if self.first is None:
            return list(chosen.files), []
        taken: list[str] = []
        samples = 0
        for name in chosen.files:
            taken.append(name)
            samples += self.samples_in(place.bring([name], outside.progress) / name, outside)
            if samples >= self.first:
                break
        return taken, [f"the first {self.first} samples: {counted(len(taken), len(chosen.files), 'files')} read"]

    def samples_in(self, file: Path, outside: Outside) -> int:
        """The number of samples of a file; of another than a tar file, the kind says it."""
        outside.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=outside.cache, prefix=".tar-") as scratch:
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

    def wanted(self, outside: Outside) -> tuple[hub.Snapshot, list[str]] | None:
        """The repository, and the files that a fetch takes (of `first`, those at most); None for a folder.

        Raises:
            UserError, UnavailableError: as `place` and `choose`.
        """
        place = self.place(outside.project)
        if not isinstance(place, hub.Snapshot):
            return None
        chosen = self.choose(place, outside)
        names = list(chosen.files) if self.first is not None else self.needed(chosen, place, outside)[0]
        return place, [*names, *chosen.beside]

    def fetch(self, into: Path, outside: Outside) -> None:
        place = self.place(outside.project)
        chosen = self.choose(place, outside)
        names, notes = self.needed(chosen, place, outside)
        every = list(dict.fromkeys([*names, *chosen.beside, *([CARD] if CARD in place.names else [])]))
        folder = place.bring(every, outside.progress)
        for done, name in enumerate(every, start=1):
            files.copy(folder / name, into / self.store / name)
            outside.progress(f"copying {self.path}", done, len(every))
        record = Fetched(split=chosen.split, files=names, facts=dict(chosen.facts))
        home = into / self.store
        if isinstance(place, hub.Snapshot):
            record.origin = {"address": str(place.address), **place.pin(every, home).as_dict()}
        card = front_matter(home / CARD)
        record.licence, record.attribution = licence(card), _attribution(card, record.origin)
        (into / f"{self.store}.json").write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for note in (*chosen.notes, *notes):
            outside.note(f"{self.what}: {note}")

    def origin(self, raw: Path) -> Origin:
        record = self.record(raw)
        licence = self.licence or record.licence or "unknown"
        attribution = self.attribution or record.attribution
        if record.origin is None:
            return Origin(self.path, licence, attribution)
        pinned = tuple((name, f["size"], f["sha256"]) for name, f in sorted(record.origin["files"].items()))
        return Origin(f"hf:{record.origin['repository']}@{record.origin['commit']}", licence, attribution, pinned)


def counted(some: int, of: int, what: str) -> str:
    """``3 of 5 files``, or ``all 5 files``."""
    return f"all {of} {what}" if some == of else f"{some} of {of} {what}"


def _attribution(card: Mapping[str, Any], origin: Mapping[str, Any] | None) -> str:
    parts = [*texts_of(card.get("pretty_name")), *([f"hf:{origin['repository']}"] if origin else [])]
    return shortened(", ".join(parts), 300) if parts else ""
