"""What people do with recorded states: bring one back, go back to one. The store is opened only where it is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from tasks import layout
from tasks.errors import UserError
from tasks.params import Store, load
from tasks.progress import Progress
from tasks.record import integrity, retention, worktree
from tasks.record import restore as restoring
from tasks.record import rollback as rolling
from tasks.record import states as recorded
from tasks.record import verify as verifying
from tasks.record.integrity import Integrity
from tasks.record.restore import Restored
from tasks.record.states import State
from tasks.record.verify import Need, Verification
from tasks.storage import dvc_config, embedded, lease, store, writer_lock
from tasks.storage.cache import Cache
from tasks.storage.dvc import Dvc
from tasks.storage.dvc_config import Remote


def restore(project: Path, timeline: str, name: str, to: Path | None) -> Restored:
    """Restore a state, by default into a folder beside the project."""
    state = recorded.find(project, timeline, name)
    folder = to.resolve() if to else restoring.default_folder(project, state)
    cache = Cache(dvc_config.cache_dir(project))
    damaged = [path for path, entry in state.entries.items() if cache.drop_damaged(entry)]
    with opened_for(project, [(state, state.entries)]) as remote:
        return replace(restoring.restore(project, state, folder, remote), damaged=tuple(damaged))


def verify(project: Path, state: State, progress: Progress) -> Verification:
    """Run a state's nodes again; what the cache has damaged of their inputs is fetched again."""
    try:
        needs = verifying.needs(state)
        cache = Cache(dvc_config.cache_dir(project))
        for one, paths in needs:
            for path in paths:
                cache.drop_damaged(one.entries[path])
        with opened_for(project, needs) as remote:
            return verifying.verify(project, state, remote, progress)
    except UserError as error:  # of this state: others may do better
        return Verification(state, failure=str(error))


def chosen(project: Path, timeline: str, name: str | None, *, every: bool) -> list[State]:
    """The state that a command names, or every state of the timeline.

    Raises:
        UserError: neither or both; or there is none.
    """
    if every == (name is not None):
        raise UserError("say which state (3, say), or --all")
    if name is not None:
        return [recorded.find(project, timeline, name)]
    states = recorded.all_states(project, timeline)
    if not states:
        raise UserError(f"timeline {timeline!r} has no states yet")
    return states


def worth_running(states: Iterable[State]) -> tuple[list[State], dict[str, str]]:
    """The states to run again, and why the others are not: tag → reason. Each set of bytes is made once."""
    chosen: list[State] = []
    left: dict[str, str] = {}
    for state in states:
        twin = next((one for one in chosen if state.manifest.rollback and one.entries == state.entries), None)
        if state.commit in retention.let_go(state.project):
            left[state.tag] = "its weights were let go; --quick reads what is left"
        elif twin:
            left[state.tag] = f"it is {twin.tag} once more"
        else:
            chosen.append(state)
    return chosen, left


def quick(project: Path, states: Iterable[State], progress: Progress) -> dict[str, Integrity]:
    """Read every stored byte of some states, in the cache and in their remotes; what was found, by remote."""
    by_remote: dict[str, list[State]] = {}
    for state in states:
        by_remote.setdefault(state.params["store"]["remote"], []).append(state)
    cache = Cache(dvc_config.cache_dir(project))
    found = {}
    for name, kept in by_remote.items():
        _require_embedded(project, name, kept[0])
        with store.open_store(project, name) as remote:
            found[name] = integrity.check(kept, cache, remote, progress)
    return found


@contextlib.contextmanager
def opened_for(project: Path, needs: Iterable[Need]) -> Iterator[Remote | None]:
    """The store that states are kept in, if the cache lacks something that is needed of one; else None."""
    cache = Cache(dvc_config.cache_dir(project))
    lacking = next((state for state, paths in needs if restoring.missing(state, cache, paths)), None)
    if lacking is None:
        yield None
        return
    name = lacking.params["store"]["remote"]
    _require_embedded(project, name, lacking)
    with store.open_store(project, name) as remote:
        yield remote


def _require_embedded(project: Path, name: str, state: State) -> None:
    """An embedded store that nothing was ever put into would only be started to say that it lacks everything."""
    if name == dvc_config.EMBEDDED and not (embedded.folder(project) / "data").exists():
        raise UserError(
            f"{state.tag} is kept in the embedded store of the clone that recorded it, and this clone has none; "
            "if that one is on this machine, `chronomerge remote use ITS-FOLDER`, then try again"
        )


def rollback(project: Path, timeline: str, name: str, *, wait: bool) -> tuple[State, State | None]:
    """Go back to a state; returns it and the state that now stands for it, None where it is the newest anyway.

    Raises:
        UserError: the timeline is being written; there is no such state; or its data cannot be had.
    """
    place = layout.place_of(name)
    timeline = place.timeline if place else timeline
    with writer_lock.writing(project, timeline, wait=wait):
        worktree.require_not_checked_out(project, timeline)
        worktree.clean_up(project, timeline)
        settings = store_of(project, timeline)
        if settings.git:
            recorded.synchronize(project, timeline, settings.git)
        state = recorded.find(project, timeline, name)
        if rolling.is_newest(state):
            return state, None
        with _agreeing(project, settings, timeline, wait=wait) as agree:
            _bring(project, state)
            return state, rolling.rollback(project, state, settings.git, agree)


@contextlib.contextmanager
def _agreeing(project: Path, settings: Store, timeline: str, *, wait: bool) -> Iterator[Callable[[State], None]]:
    """Hold a timeline in its store where machines agree there; yields how they agree on a new state."""
    if settings.git:
        yield lambda _: None
        return
    with store.open_store(project, settings.remote) as remote, contextlib.ExitStack() as stack:
        if lease.needed(settings, remote):
            stack.enter_context(lease.writing(project, remote, timeline, wait=wait))
        yield lease.agreement(settings, remote)


def _bring(project: Path, state: State) -> None:
    """Have all of a state in the cache: what cannot be had is no place to go on from."""
    with opened_for(project, [(state, state.entries)]) as remote:
        if remote:
            with Dvc(project) as dvc, worktree.of_state(project, state, remote) as there:
                restoring.fetch(state, Cache(dvc_config.cache_dir(project)), dvc, there)


def store_of(project: Path, timeline: str) -> Store:
    """Where a timeline's states are kept and pushed to: as params.yaml says, else as its newest state does."""
    params = load(project / "params.yaml")
    newest = recorded.last(project, timeline)
    return params.store if params.timeline == timeline or newest is None else Store(**newest.params["store"])
