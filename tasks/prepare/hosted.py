"""What sources of published data sets share: a place on a hub or a folder, splits by name, pins, licences, counts.

All files that are read are raw files afterwards, beside a record of where they came from: the repository, its commit,
and bytes and SHA-256 of each file.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from tasks.errors import UserError
from tasks.model.datasets import Origin
from tasks.prepare import files, tars
from tasks.prepare.image_source import ImageSource, Listing, Row
from tasks.prepare.places import CARD, CARD_BYTES, Folder, Place
from tasks.prepare.source import Context, Outside
from tasks.progress import silent
from tasks.storage import hub
from tasks.text import one_line, shortened

_FIRST = re.compile(r"\[:(\d+)\]")
_SPLIT = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Chosen:
    """What of a place is read."""

    split: str
    files: tuple[str, ...]
    """Files of samples, in their order; as many are taken as the selection needs."""
    beside: tuple[str, ...] = ()
    """Files that say something of the samples."""
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What reading needs to know besides; JSON."""


class HostedRecord(BaseModel):
    """What was fetched, for preparation later: kept beside the raw copies."""

    split: str
    files: list[str]
    """Files of samples, relative to the raw copies' root."""
    facts: dict[str, Any] = {}
    origin: dict[str, Any] | None = None
    """Repository, revision, commit and files, where they came from a hub."""
    licence: str = ""
    attribution: str = ""


class Hosted(ImageSource):
    """Settings of a source of a published data set; short form ``kind:ADDRESS``, ``kind:ADDRESS#SPLIT``.

    ``split`` is one that the data set comes with, by its name; ``train`` and ``test`` also mean what is usual for them.
    ``share`` draws from it, as for own images: ``#train[:80%]``. ``first`` takes its first samples in the order of its
    files, and no more files than they need: ``#train[:1000]``.
    """

    split: str | None = None
    first: int | None = Field(default=None, gt=0)
    """How many samples are taken, from the start."""
    licence: str = ""
    """For the data card; by default what the repository's card says."""

    @field_validator("split")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        if value is not None and (not _SPLIT.fullmatch(value) or value.strip(".") == ""):
            raise ValueError("a split is a name of letters, digits, '_', '-' and '.'")
        return value

    @model_validator(mode="after")
    def _one_selection(self) -> Hosted:
        if self.first is not None and (self.only or self.share):
            raise ValueError("first (#SPLIT[:1000]) goes neither with only nor with share; give one of them")
        return self

    @classmethod
    def from_text(cls, what: str) -> dict[str, Any]:
        settings = super().from_text(what)
        if match := _FIRST.fullmatch(settings.get("share", "").replace(" ", "")):
            del settings["share"]
            settings["first"] = int(match[1])
        return settings

    @property
    def store(self) -> str:
        readable = re.sub(r"[^A-Za-z0-9]+", "-", self.path.partition("@")[0].rpartition("/")[2]).strip("-")
        digest = hashlib.sha256(json.dumps([self.path, self.selection]).encode()).hexdigest()[:8]
        return f"{readable}-{digest}-{self.split or 'all'}"

    @property
    def selection(self) -> list[Any]:
        """What decides which files are fetched, besides the address and the split."""
        return [list(self.only), self.first]

    @property
    def what(self) -> str:
        """What messages call the source."""
        return f"{self.name}: {self.path}"

    @abstractmethod
    def address(self, project: Path) -> hub.Address | None:
        """The repository that is meant; None for a folder of the user's.

        Raises:
            UserError: it is no address.
        """

    @abstractmethod
    def choose(self, place: Place, outside: Outside) -> Chosen:
        """Which files are read; may bring small ones.

        Raises:
            UserError: the place has no such split, or is no data set of this kind.
        """

    def needed(self, chosen: Chosen, place: Place, outside: Outside) -> tuple[list[str], list[str]]:
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

    def at_most(self, project: Path) -> int | None:  # noqa: ARG002 - nothing is looked up before a run
        return self.first

    def fetch(self, into: Path, outside: Outside) -> None:
        place = self.place(outside.project)
        chosen = self.choose(place, outside)
        names, notes = self.needed(chosen, place, outside)
        every = list(dict.fromkeys([*names, *chosen.beside, *([CARD] if CARD in place.names else [])]))
        folder = place.bring(every, outside.progress)
        for done, name in enumerate(every, start=1):
            files.copy(folder / name, into / self.store / name)
            outside.progress(f"copying {self.path}", done, len(every))
        record = HostedRecord(split=chosen.split, files=names, facts=dict(chosen.facts))
        home = into / self.store
        if isinstance(place, hub.Snapshot):
            record.origin = {"address": str(place.address), **place.pin(every, home).as_dict()}
        card = front_matter(home / CARD)
        record.licence, record.attribution = _licence(card), _attribution(card, record.origin)
        (into / f"{self.store}.json").write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for note in (*chosen.notes, *notes):
            outside.note(f"{self.what}: {note}")

    def record(self, raw: Path) -> HostedRecord:
        """What was fetched into raw files.

        Raises:
            UserError: the record is missing or damaged.
        """
        return read_record(raw / f"{self.store}.json")

    def fetched(self, raw: Path) -> Listing:
        return Listing(given=True, files=self.record(raw).files)

    def _drawn(self, rows: list[Row], context: Context, *, given: bool, what: str) -> list[Row]:
        if self.first is None:
            return super()._drawn(rows, context, given=given, what=what)
        if len(rows) < self.first:
            raise UserError(f"{what}: has {len(rows)} samples, not {self.first}; ask for fewer, or for all")
        names = {row.class_name for row in rows}
        taken = {row.class_name for row in rows[: self.first]}
        if names - taken:
            context.note(f"{what}: the first {self.first} samples are of {len(taken)} classes")
        return rows[: self.first]

    def origin(self, raw: Path) -> Origin:
        record = self.record(raw)
        licence = self.licence or record.licence or "unknown"
        attribution = self.attribution or record.attribution
        if record.origin is None:
            return Origin(self.path, licence, attribution)
        pinned = tuple((name, f["size"], f["sha256"]) for name, f in sorted(record.origin["files"].items()))
        return Origin(f"hf:{record.origin['repository']}@{record.origin['commit']}", licence, attribution, pinned)


def read_record(path: Path) -> HostedRecord:
    """What a fetch of a published data set left.

    Raises:
        UserError: the record is missing or damaged.
    """
    try:
        return HostedRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path}: missing or damaged; fetch the arrival again") from None


def counted(some: int, of: int, what: str) -> str:
    """``3 of 5 files``, or ``all 5 files``."""
    return f"all {of} {what}" if some == of else f"{some} of {of} {what}"


def front_matter(card: Path) -> dict[str, Any]:
    """The YAML at the head of a repository's card; empty where there is none that can be read."""
    from huggingface_hub import metadata_load

    try:
        content = (metadata_load(card) if card.stat().st_size <= CARD_BYTES else None) or {}
    except (OSError, ValueError, RecursionError):
        return {}
    except Exception as error:  # of the YAML library
        if type(error).__module__.split(".")[0] != "yaml":
            raise
        return {}
    return {str(key): value for key, value in content.items()}


def _licence(card: Mapping[str, Any]) -> str:
    """The licence that a card names: its identifiers, and its own name and address where it is of no known kind."""
    given = [card.get("license"), card.get("license_name"), card.get("license_link")]
    texts = [text for one in given for text in _texts(one) if text != "other" or not card.get("license_name")]
    return shortened(", ".join(dict.fromkeys(texts)), 300) if texts else ""


def _attribution(card: Mapping[str, Any], origin: Mapping[str, Any] | None) -> str:
    parts = [*_texts(card.get("pretty_name")), *([f"hf:{origin['repository']}"] if origin else [])]
    return shortened(", ".join(parts), 300) if parts else ""


def _texts(value: Any) -> Iterator[str]:
    for one in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
        if isinstance(one, str) and one.strip():
            yield one_line(one)
