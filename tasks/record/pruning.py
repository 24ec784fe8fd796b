"""Free what nothing refers to, once it is known what all who share the store refer to."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import UserError
from tasks.params import load
from tasks.record import garbage, retention, timelines
from tasks.record.garbage import SweepPlan, readable
from tasks.storage import dvc_config, embedded, lease, locks, store
from tasks.storage.cache import Cache
from tasks.storage.dvc import Dvc
from tasks.storage.git import GitError, git, require_remote
from tasks.storage.objects import Depot


def fetch_references(project: Path) -> list[str]:
    """Bring states and notes of other machines from the project's git remote, if it has one; returns it.

    Raises:
        UserError: it cannot be reached, or holds another state under a tag of ours; or states were shared through
            another remote, so that nobody can tell what other machines have recorded.
    """
    remote = load(project / "params.yaml").store.git
    _require_no_other_remote(project, remote)
    if remote:
        require_remote(project, remote)
        refs = [f"+refs/heads/*:refs/remotes/{remote}/*", "refs/tags/state/*:refs/tags/state/*"]
        refs += [f"+refs/tags/{kind}/*:refs/tags/{kind}/*" for kind in ("deployed", "pointer")]
        try:
            git(project, "fetch", "--quiet", "--no-tags", "--", remote, *refs)
            retention.fetch_notes(project, remote)
        except GitError as error:
            raise UserError(f"store.git: cannot tell what other machines recorded: {error}") from None
    return [remote] if remote else []


def _require_no_other_remote(project: Path, own: str | None) -> None:
    """States name the remote that they were shared through; it is never asked, only compared."""
    known = set(git(project, "remote").splitlines()) - {own}
    for state in readable(project):
        if (other := state.settings.store.git) in known:
            raise UserError(
                f"{state.tag} was shared through git remote {other!r}, and params.yaml does not name that one; set "
                f"store.git: {other}, or remove the remote if no other machine uses it"
            )


def prune(
    project: Path,
    *,
    keep_last: int | None = None,
    keep_tags: Collection[str] = (),
    delete: bool = False,
    everywhere: bool = False,
) -> SweepPlan:
    """Find garbage in the project's cache and store, and with ``delete`` free it; ``everywhere``: in the store too.

    Raises:
        UserError: a run is under way, the store does not answer, or what a state refers to cannot be told.
        RemoteError: the store does not do as asked.
    """
    with locks.alone(project):
        shared = fetch_references(project)
        name = load(project / "params.yaml").store.remote
        if name == dvc_config.EMBEDDED and everywhere and embedded.in_use(project):
            raise UserError("something uses the embedded store, perhaps a run in another clone; try again when it ends")
        with depot(project, name) as opened:
            if everywhere:
                _require_no_strangers(opened)
            plan = garbage.plan(opened, keep_last=keep_last, keep_tags=keep_tags, everywhere=everywhere)
            if delete:
                garbage.sweep(opened, plan, shared, everywhere=everywhere)
            return plan


def _require_no_strangers(opened: Depot) -> None:
    """Without a shared git remote, machines note in the store itself what they record."""
    if not opened.remote.is_s3:
        return
    known = {state.commit for state in timelines.every(opened.project)}
    if others := lease.strangers(opened.project, opened.remote, known):
        raise UserError(
            f"store {opened.remote.name!r} has other users: {'; '.join(others[:3])}; fetch their tags first "
            "(git fetch), and wait until they have ended"
        )


@contextmanager
def depot(project: Path, name: str) -> Iterator[Depot]:
    """The project's cache and the remote ``name``, opened."""
    with store.open_store(project, name) as remote, Dvc(project) as dvc:
        yield Depot(project, Cache(dvc_config.cache_dir(project)), remote, dvc)
