"""The store of a project, opened only where the cache lacks something of a state.

Which store that is, params.yaml says: a state may come from another repository, and is not asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from tasks.errors import UserError
from tasks.params import load
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
    """The project's store, if the cache lacks something that is needed of a state; else None."""
    cache = Cache(dvc_config.cache_dir(project))
    lacking = next((state for state, paths in needs if missing(state, cache, paths)), None)
    if lacking is None:
        yield None
        return
    name = load(project / "params.yaml").store.remote
    require_embedded(project, name, lacking)
    with store.open_store(project, name) as remote:
        yield remote


def require_embedded(project: Path, name: str, state: State) -> None:
    """An embedded store that nothing was ever put into would only be started to say that it lacks everything."""
    if name == dvc_config.EMBEDDED and not (embedded.folder(project) / "data").exists():
        raise UserError(
            f"{state.tag} is stored in the embedded store of the clone that recorded it, and this clone has none; "
            "if that one is on this machine, `chronomerge remote use ITS-FOLDER`, then try again"
        )
