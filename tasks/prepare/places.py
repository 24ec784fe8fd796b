"""Where the files of a data set lie that has a layout of its own: a user's folder, or a repository of a hub."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tasks.errors import UserError
from tasks.prepare import listing
from tasks.prepare.splits import PART_NAMES
from tasks.progress import Progress, silent


class Place(Protocol):
    """Files by their paths below one place; they are brought to this machine as they are asked for."""

    @property
    def names(self) -> Collection[str]: ...

    @property
    def sizes(self) -> Mapping[str, int]: ...

    def bring(self, names: Iterable[str], progress: Progress = silent) -> Path:
        """The folder that then has files of these names."""


@dataclass(frozen=True)
class Folder:
    """A user's folder as a `Place`; ``shown`` is what messages call it."""

    path: Path
    shown: str
    names: frozenset[str]
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, path: Path, shown: str) -> Folder:
        """All files below a folder; hidden ones are left out.

        Raises:
            UserError: it cannot be listed.
        """
        files = listing.walk(path)
        sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in files if not listing.fault(file)}
        return cls(path, shown, frozenset(file.relative_to(path).as_posix() for file in files), sizes)

    def bring(self, names: Iterable[str], progress: Progress = silent) -> Path:  # noqa: ARG002 - nothing is downloaded
        """The folder itself.

        Raises:
            UserError: one of the files is missing, or is none that can be read and stored.
        """
        for name in names:
            if problem := listing.fault(self.path / name):
                raise UserError(f"{self.shown}/{name}: {problem}")
        return self.path


def pick(splits: Sequence[str], wanted: str | None, what: str) -> tuple[str, str | None]:
    """Which of the splits of a data set is read, and a note where it is called otherwise than it was asked for.

    ``train`` and ``test`` also mean what such parts are usually called (``validation``, say), if none is called so.

    Raises:
        UserError: there is no such split, or there are several and none was asked for; ``what`` is the source as
            messages call it.
    """
    there = ", ".join(splits[:20]) + (f" and {len(splits) - 20} more" if len(splits) > 20 else "")
    if wanted is None:
        if len(splits) == 1:
            return splits[0], None
        raise UserError(f"{what}: has the splits {there}; pick one with #{splits[0]}, say")
    if wanted in splits:
        return wanted, None
    usual = {name: part for part, names in PART_NAMES.items() for name in names}
    meant = next((name for name in PART_NAMES.get(usual.get(wanted), ()) if name in splits), None)  # type: ignore[arg-type]
    if meant is not None and wanted in PART_NAMES:
        return meant, f"#{wanted} reads the split {meant}, for none is called {wanted}"
    draw = f"; #{splits[0]}[:80%] and #{splits[0]}[80%:] draw two parts from it" if len(splits) == 1 else ""
    raise UserError(f"{what}: has no split {wanted!r}, only {there}{draw}")


def left_out(place: Place, taken: Collection[str], others: Collection[str]) -> str | None:
    """One sentence on files that are in no split and are not read; ``others`` are the folders of other splits."""
    beside = [
        name
        for name in place.names
        if name not in taken
        and name.partition("/")[0] not in others
        and not any(listing.is_hidden(part) for part in name.split("/"))
        and posixpath.basename(name).lower() not in ("readme.md", "license", "licence", "license.txt")
    ]
    return listing.left_out(beside)
