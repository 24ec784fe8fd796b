"""What a crash or a person can leave in a project: findings, each with what it means and what repairs it.

A check is a function from a `Visit` to `Finding`s, in `tasks.record.checks`; add one there and to its `CHECKS`.
Nothing that a tag refers to is ever deleted, and what a running writer owns is left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from tasks import layout
from tasks.errors import UserError
from tasks.params import load
from tasks.progress import Progress, silent
from tasks.record import retention, timelines
from tasks.record.state import State
from tasks.storage import dvc_config, locks, objects, store
from tasks.storage.cache import Cache
from tasks.storage.dvc import Dvc, RemoteError
from tasks.storage.git import GitError
from tasks.storage.objects import Depot, StoredObject


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    what: str
    where: str
    meaning: str
    remedy: str
    """What `repair` does; or, where there is none, what a person can do."""
    repair: Callable[[], str | None] | None = field(default=None, repr=False, compare=False)
    """Does it, and returns what it did where ``remedy`` leaves that open."""
    timeline: str | None = None
    """The timeline whose lock the repair needs, if any."""

    def as_dict(self) -> dict[str, str | bool]:
        return {"what": self.what, "where": self.where, "meaning": self.meaning, "remedy": self.remedy,
                "repairable": self.repair is not None}  # fmt: skip


Check = Callable[["Visit"], Iterable[Finding]]


class Visit:
    """One look at a project, used as a context manager: what several checks need is found out once, when asked for."""

    def __init__(self, project: Path, remote: str, progress: Progress):
        self.project, self.remote, self.progress = project, remote, progress
        self.cache = Cache(dvc_config.cache_dir(project))
        self.skipped: list[str] = []
        """Sentences: what was not looked at, and why."""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(locks.using(self.project))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @cached_property
    def depot(self) -> Depot | None:
        """The store, opened; None where it cannot be."""
        try:
            opened = self._stack.enter_context(store.open_store(self.project, self.remote))
        except UserError as error:
            self.unreachable = str(error)
            return None
        return Depot(self.project, self.cache, opened, self._stack.enter_context(Dvc(self.project)))

    unreachable: str | None = None
    """Why the store could not be opened."""

    @cached_property
    def states(self) -> list[State]:
        """All states whose records can be read (`checks.records` finds the others)."""
        return [state for state in timelines.every(self.project) if not state.unreadable()]

    @cached_property
    def here(self) -> dict[str, StoredObject]:
        return objects.in_cache(self.cache)[0]

    @cached_property
    def strays(self) -> list[Path]:
        return objects.in_cache(self.cache)[1]

    @cached_property
    def there(self) -> dict[str, StoredObject]:
        return objects.in_remote(self.depot) if self.depot else {}

    @cached_property
    def damaged(self) -> set[str]:
        """Objects of the cache whose bytes are not their own; every byte is read."""
        bad = set()
        for done, md5 in enumerate(sorted(self.here), start=1):
            if not self.cache.intact(objects.one(md5)):
                bad.add(md5)
            self.progress("reading the cache", done, len(self.here))
        return bad

    @cached_property
    def wanted(self) -> dict[str, list[str]]:
        """Every object that the store must hold → where states need it (tag and path)."""
        gone = retention.let_go(self.project)
        held = {state: retention.held(state, gone) for state in self.states}
        folders = {entry.md5 for entries in held.values() for entry in entries.values() if entry.is_folder}
        listed = objects.members(folders, self.depot) if self.depot else objects.members_in_cache(folders, self.cache)
        places: dict[str, list[str]] = {}
        for state, entries in held.items():
            for path, entry in entries.items():
                places.setdefault(entry.md5, []).append(f"{state.tag} {path}")
                for name, md5 in listed.get(entry.md5, {}).items():
                    places.setdefault(md5, []).append(f"{state.tag} {path}/{name}")
        return places

    def free(self, timeline: str) -> bool:
        """Whether nobody writes to a timeline now; who does owns what lies about it, and that is said once."""
        who = locks.holder(self.project, timeline)
        if who:
            sentence = f"timeline {timeline!r} is being written by {who}: what belongs to that was left alone"
            if sentence not in self.skipped:
                self.skipped.append(sentence)
        return who is None

    def timelines(self) -> list[str]:
        """All timelines that have left anything here."""
        work = layout.private(self.project) / "work"
        names = {folder.name for folder in work.iterdir()} if work.exists() else set()
        return sorted(names | set(timelines.timeline_names(self.project)) | set(locks.timelines(self.project)))


def examine(visit: Visit, checks: Iterable[Check]) -> Iterator[Finding]:
    """Run checks one after the other."""
    for check in checks:
        yield from check(visit)


def repair_one(project: Path, finding: Finding) -> tuple[Finding, str | None]:
    """Repair one finding; returns it, its remedy being what was done, and why that was not possible, or None."""
    if finding.repair is None:
        return finding, finding.remedy
    try:
        with locks.writing(project, finding.timeline) if finding.timeline else contextlib.nullcontext():
            done = finding.repair()
    except (UserError, RemoteError, GitError, OSError) as error:
        return finding, str(error)
    return (replace(finding, remedy=done) if done else finding), None


@dataclass(frozen=True)
class Diagnosis:
    """What a doctor found, with why it is left (None: it was repaired), and what was not looked at."""

    findings: list[tuple[Finding, str | None]]
    skipped: list[str]

    @property
    def healthy(self) -> bool:
        return all(why is None for _, why in self.findings)


def doctor(
    project: Path, *, repair: bool = False, progress: Progress = silent, also: Iterable[Check] = ()
) -> Diagnosis:
    """Look for what a crash or a person can have left in a project, and with ``repair`` repair it.

    ``also`` are checks beside `tasks.record.checks`.

    Raises:
        UserError: ``params.yaml`` is wrong, or objects are being deleted right now.
    """
    from tasks.record.checks import CHECKS

    findings = []
    with Visit(project, load(project / "params.yaml").store.remote, progress) as visit:
        for finding in examine(visit, [*CHECKS, *also]):
            findings.append(repair_one(project, finding) if repair else (finding, finding.remedy))
        return Diagnosis(findings, visit.skipped)
