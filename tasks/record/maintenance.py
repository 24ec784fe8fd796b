"""What people do to keep a project in order: look what is wrong and mend it, free what nothing refers to."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.prefect import runs
from tasks.errors import UserError
from tasks.params import load
from tasks.progress import Progress, silent
from tasks.record import garbage, states
from tasks.record.checks import CHECKS
from tasks.record.doctor import Finding, Visit, examine, mend
from tasks.record.garbage import Plan
from tasks.storage import dvc_config, embedded, lease, store, writer_lock
from tasks.storage.cache import Cache
from tasks.storage.dvc import Dvc
from tasks.storage.objects import Depot


@dataclass(frozen=True)
class Report:
    """What a doctor found, with why it is left (None: it was mended), and what was not looked at."""

    findings: list[tuple[Finding, str | None]]
    skipped: list[str]

    @property
    def healthy(self) -> bool:
        return all(why is None for _, why in self.findings)


def doctor(project: Path, *, repair: bool = False, progress: Progress = silent) -> Report:
    """Look for what a crash or a person can have left in a project, and with ``repair`` mend it.

    Raises:
        UserError: ``params.yaml`` is wrong, or objects are being deleted right now.
    """
    found = []
    with Visit(project, load(project / "params.yaml").store.remote, progress) as visit:
        for finding in examine(visit, [*CHECKS, runs.unended]):
            found.append((finding, mend(project, finding) if repair else finding.remedy))
        return Report(found, visit.skipped)


def collect(
    project: Path,
    *,
    keep_last: int | None = None,
    keep_tags: Collection[str] = (),
    delete: bool = False,
    everywhere: bool = False,
) -> Plan:
    """Find garbage in the project's cache and store, and with ``delete`` free it; ``everywhere``: in the store too.

    Raises:
        UserError: a run is under way, the store does not answer, or what a state refers to cannot be told.
        RemoteError: the store does not do as asked.
    """
    with writer_lock.alone(project):
        shared = garbage.fetch_references(project)
        name = load(project / "params.yaml").store.remote
        if name == dvc_config.EMBEDDED and everywhere and embedded.in_use(project):
            raise UserError("something uses the embedded store, perhaps a run in another clone; try again when it ends")
        with depot(project, name) as opened:
            if everywhere:
                _require_no_strangers(opened)
            found = garbage.plan(opened, keep_last=keep_last, keep_tags=keep_tags, everywhere=everywhere)
            if delete:
                garbage.sweep(opened, found, shared, everywhere=everywhere)
            return found


def _require_no_strangers(opened: Depot) -> None:
    """Without a shared git remote, machines leave word in the store itself of what they record."""
    if not opened.remote.is_s3:
        return
    known = {state.commit for state in states.every(opened.project)}
    if others := lease.strangers(opened.project, opened.remote, known):
        raise UserError(
            f"store {opened.remote.name!r} has other users: {'; '.join(others[:3])}; have their tags here first "
            "(git fetch), and wait until they have ended"
        )


@contextmanager
def depot(project: Path, name: str) -> Iterator[Depot]:
    """The project's cache and the remote ``name``, opened."""
    with store.open_store(project, name) as remote, Dvc(project) as dvc:
        yield Depot(project, Cache(dvc_config.cache_dir(project)), remote, dvc)
