"""What published data sets cost before a run: bytes to download, time, and disk, by lists of files; fetches no data."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UserError
from tasks.params import SourceSpec
from tasks.prepare.hosted import Hosted
from tasks.prepare.published import PublishedSource
from tasks.prepare.registry import parse_all
from tasks.prepare.source import Outside
from tasks.prepare.sources.torchvision import Torchvision
from tasks.progress import Progress, silent
from tasks.storage import hub
from tasks.units import counted, duration

UNITS = ((1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB"), (1, "bytes"))
RATE = 50e6
"""Bits a second, of the estimated time of downloads."""
_AT_MOST = "; what first (#SPLIT[:1000]) asks for may need fewer"


@dataclass(frozen=True)
class Demand:
    """What sources cost together; each file once, however many sources read it."""

    sources: int
    files: int
    download: int
    """Bytes that the hub's cache on this machine lacks."""
    kept: int
    """Bytes of raw files, which the states keep."""
    at_most: bool
    """Whether fewer may do: how many files a number of samples takes shows as they come."""
    unknown: tuple[str, ...]
    """Sources of unknown size."""

    def __str__(self) -> str:
        said = [
            f"{counted(self.sources, 'published data set')}: {counted(self.files, 'file')}, "
            f"{shown(self.download)} to download, {duration(self.download * 8 / RATE)} at {RATE / 1e6:.0f} Mbit/s"
            + _AT_MOST
            * self.at_most
        ]
        said.append(f"{shown(self.download + self.kept)} of disk, and prepared images on top")
        if self.unknown:
            said.append(f"the sizes of {', '.join(self.unknown)} are unknown")
        return "; ".join(said)


def demand(
    groups: Iterable[tuple[str, Iterable[SourceSpec]]], project: Path, cache: Path, progress: Progress = silent
) -> Demand | None:
    """What the published data sets among some sources cost; None where there are none. ``groups``: key → sources.

    Raises:
        UserError: one cannot be had, or has no such split; names the key.
        UnavailableError: a hub does not answer, and its cache lacks the repository.
    """
    published: dict[PublishedSource, str] = {}
    for where, specs in groups:
        for source in parse_all(list(specs), where):
            if isinstance(source, PublishedSource):
                published.setdefault(source, where)
    files: dict[tuple[str, str, str], tuple[int, bool]] = {}
    at_most, unknown, count = False, [], 0
    for source, where in published.items():
        if isinstance(source, Torchvision):
            if not source.is_there(cache):
                unknown.append(f"torchvision:{source.path}")
                count += 1
        elif isinstance(source, Hosted):
            try:
                sized = source.wanted(Outside(project, cache, 0, progress))
            except UserError as error:
                raise type(error)(f"{where}: {error}") from None
            if sized is None:
                continue
            place, sizes = sized
            count, at_most = count + 1, at_most or source.first is not None
            for name, size in sizes.items():
                key = place.address.repository, place.commit, name
                files[key] = max(size, files.get(key, (0, False))[0]), place.has(name)
    if not count:
        return None
    download = sum(size for size, there in files.values() if not there)
    kept = sum(size for size, _ in files.values())
    return Demand(count, len(files), download, kept, at_most, tuple(unknown))


def require_room(asked: Demand, project: Path) -> None:
    """Raises:
    UserError: the disk of the project has less room than the downloads and their copies take.
    """
    if asked.at_most:
        return
    needed = asked.kept + (asked.download if _same_disk(project, hub.cache_folder()) else 0)
    if needed > (free := shutil.disk_usage(project).free):
        raise UserError(
            f"{asked}; and {shown(free)} are free at {project}; free some, or read less (only, #SPLIT[:1000])"
        )


def shown(count: int) -> str:
    """A number of bytes for people: ``1.5 GB``; powers of 1024."""
    size, unit = next((size, unit) for size, unit in UNITS if count >= size or size == 1)
    return f"{count / size:.1f} {unit}" if size > 1 else f"{count} {unit}"


def _same_disk(one: Path, other: Path) -> bool:
    there = next(path for path in (other, *other.parents) if path.exists())
    return one.stat().st_dev == there.stat().st_dev
