"""What sources of published data sets share: splits by name, selections, a record of what was fetched."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, field_validator, model_validator

from tasks.errors import UserError
from tasks.prepare.image_source import ImageSource, Listing, Row
from tasks.prepare.source import Context

_FIRST = re.compile(r"\[:(\d+)\]")
_SPLIT = re.compile(r"[\w.-]+")


class Fetched(BaseModel):
    """What was fetched, for preparation later: kept beside the raw copies."""

    split: str
    files: list[str]
    """Files of samples, relative to the raw copies' root."""
    facts: dict[str, Any] = {}
    origin: dict[str, Any] | None = None
    """Repository, revision, commit and files, where they came from a hub."""
    licence: str = ""
    attribution: str = ""


class PublishedSource(ImageSource):
    """Settings of a source of a published data set; short form ``kind:ADDRESS``, ``kind:ADDRESS#SPLIT``.

    ``split`` is one that the data set comes with, by its name; ``train`` and ``test`` also mean what is usual for them.
    ``share`` draws from it, as for own images: ``#train[:80%]``. ``first`` takes its first samples in the order of its
    files, and no more files than they need: ``#train[:1000]``.
    """

    split: str | None = None
    first: int | None = Field(default=None, gt=0)
    """How many samples are taken, from the start."""
    licence: str = ""
    """For the data card; by default what the data set itself says."""

    @field_validator("split")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        if value is not None and (not _SPLIT.fullmatch(value) or value.strip(".") == ""):
            raise ValueError("a split is a name of letters, digits, '_', '-' and '.'")
        return value

    @model_validator(mode="after")
    def _one_selection(self) -> PublishedSource:
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

    def at_most(self, project: Path) -> int | None:  # noqa: ARG002 - nothing is looked up before a run
        return self.first

    def record(self, raw: Path) -> Fetched:
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


def read_record(path: Path) -> Fetched:
    """What a fetch of a published data set left.

    Raises:
        UserError: the record is missing or damaged.
    """
    try:
        return Fetched.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path}: missing or damaged; fetch the arrival again") from None
