"""Which store holds a state, and opening it only where the cache lacks something."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from tasks.errors import UserError
from tasks.params import Store, load
from tasks.record import timelines
from tasks.record.state import State
from tasks.storage import dvc_config, embedded, store
from tasks.storage.cache import Cache, Entry
from tasks.storage.dvc_config import Remote

Need = tuple[State, Collection[str]]
"""A state, and which of its paths are needed."""


def missing(state: State, cache: Cache, only: Collection[str] | None = None) -> list[str]:
    """The objects of a state, or of some paths of it, that the cache lacks; a folder not listed there counts as one."""
    return sorted({md5 for entry in wanted(state, only).values() for md5 in cache.missing(entry)})


def wanted(state: State, only: Collection[str] | None) -> dict[str, Entry]:
    """The content of a state, or of some paths of it."""
    return {path: entry for path, entry in state.entries.items() if only is None or path in only}


@contextlib.contextmanager
def opened_for(project: Path, needs: Iterable[Need]) -> Iterator[Remote | None]:
    """The store that states are kept in, if the cache lacks something that is needed of one; else None."""
    cache = Cache(dvc_config.cache_dir(project))
    lacking = next((state for state, paths in needs if missing(state, cache, paths)), None)
    if lacking is None:
        yield None
        return
    name = lacking.params["store"]["remote"]
    require_embedded(project, name, lacking)
    with store.open_store(project, name) as remote:
        yield remote


def require_embedded(project: Path, name: str, state: State) -> None:
    """An embedded store that nothing was ever put into would only be started to say that it lacks everything."""
    if name == dvc_config.EMBEDDED and not (embedded.folder(project) / "data").exists():
        raise UserError(
            f"{state.tag} is kept in the embedded store of the clone that recorded it, and this clone has none; "
            "if that one is on this machine, `chronomerge remote use ITS-FOLDER`, then try again"
        )


def store_of(project: Path, timeline: str) -> Store:
    """Where a timeline's states are kept and pushed to: as params.yaml says, else as its newest state does."""
    params = load(project / "params.yaml")
    newest = timelines.last(project, timeline)
    return params.store if params.timeline == timeline or newest is None else Store(**newest.params["store"])
