"""Bring the weights of a state to where a server picks them up: a folder that open_clip loads as ``local-dir:FOLDER``.

Three files, each replaced as a whole, the note last: so what the note names lies there. Other files in the folder stay.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import layout
from tasks.errors import UserError
from tasks.params import load
from tasks.record import restoration, retention, sharing, stores, timelines
from tasks.record.state import State
from tasks.scores import MEANS
from tasks.storage import atomic, dvc_config, objects
from tasks.storage.cache import Cache, md5_of
from tasks.storage.dvc import Dvc
from tasks.storage.fetching import TRIES
from tasks.storage.objects import Depot

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"
NOTE = "state.json"
"""Which state this is, its scores, and the md5 of its weights."""


@dataclass(frozen=True)
class Delivered:
    """The deployed state in a folder: new there or not, and how many bytes came from the remote."""

    state: State
    folder: Path
    new: bool
    fetched: int


def fetch_deployed(project: Path, timeline: str, to: Path) -> Delivered:
    """Have the weights of the deployed state in a folder.

    Raises:
        UserError: no state is deployed, its weights cannot be had, or the folder is one of ours.
        RemoteError: the store breaks off.
    """
    folder = to.resolve()
    restoration.require_elsewhere(project, folder)
    shared = load(project / "params.yaml").store.git
    if shared:
        sharing.follow(project, timeline, shared)
    state = timelines.deployed(project, timeline)
    if state is None:
        raise UserError(
            f"timeline {timeline!r} has no deployed state in this clone; `git fetch --tags --force` brings it"
        )
    if is_there(state, folder):
        return Delivered(state, folder, new=False, fetched=0)
    cache = Cache(dvc_config.cache_dir(project))
    cache.drop_damaged(state.entries[layout.DEPLOYED])  # comes from the remote
    with stores.opened_for(project, [(state, (layout.DEPLOYED, layout.HISTORY))]) as remote:
        if remote is None:
            return Delivered(state, folder, new=True, fetched=deliver(state, folder, cache, None))
        with Dvc(project) as dvc:
            depot = Depot(project, cache, remote, dvc)
            try:
                return Delivered(state, folder, new=True, fetched=deliver(state, folder, cache, depot))
            except UserError:
                retention.require_weights(state)
                raise


def is_there(state: State, folder: Path) -> bool:
    """Whether a folder has the weights of a state already; they are hashed."""
    try:
        noted = json.loads((folder / NOTE).read_text())
        same = md5_of(folder / WEIGHTS) == state.entries[layout.DEPLOYED].md5
    except (OSError, ValueError):
        return False
    return bool(noted == _note(state) and same and (folder / CONFIG).exists())


def deliver(state: State, folder: Path, cache: Cache, depot: Depot | None) -> int:
    """Write a state's deployed weights and its model's configuration; returns how many bytes came from the remote.

    ``depot`` may be None where the cache has what is needed. What comes from either is hashed before it is shown.

    Raises:
        UserError: neither has the right bytes.
        RemoteError: the remote cannot be reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.private_folder(folder / ".chronomerge.part") as part:
        source = _Source(state, cache, depot, part)
        weights = source.get(state.entries[layout.DEPLOYED].md5, layout.DEPLOYED).rename(part / WEIGHTS)
        made = [weights]
        for name, content in ((CONFIG, _config(state, source)), (NOTE, _note(state))):
            made.append(part / name)
            made[-1].write_text(json.dumps(content, indent=1) + "\n")
        _show(made, folder)
    return source.fetched


class _Source:
    """Objects of a state, out of the cache or else the remote, as files of their own in the folder ``into``."""

    def __init__(self, state: State, cache: Cache, depot: Depot | None, into: Path):
        self._state, self._cache, self._depot, self._into = state, cache, depot, into
        self.fetched = 0

    def get(self, md5: str, path: str) -> Path:
        """One object; ``path`` is what messages call it."""
        target = self._into / md5
        stored = self._cache.path(md5)
        if stored.exists():
            shutil.copyfile(stored, target)
            if md5_of(target) == md5:
                return target
        depot = self._depot
        if depot and any(depot.take([md5], self._into) for _ in range(TRIES)):
            self.fetched += target.stat().st_size
            return target
        where = f"neither {stored} nor {depot.remote.url} has" if depot else f"{stored} does not have"
        raise UserError(f"{where} the bytes of {path} of {self._state.tag}; `chronomerge doctor` says more")

    def listing(self, md5: str) -> dict[str, str]:
        found = objects.members_in_cache([md5], self._cache)
        if md5 not in found and self._depot:
            found = objects.members([md5], self._depot)
        if md5 not in found:
            raise UserError(f"the list of files in {layout.HISTORY} of {self._state.tag} cannot be had (object {md5})")
        return found[md5]


def _config(state: State, source: _Source) -> dict[str, Any]:
    """The model in open_clip's own format; see `tasks.model.models` for what lies in the history."""
    files = source.listing(state.entries[layout.HISTORY].md5)
    found = []
    for name, wanted in (("model.json", "model_cfg"), ("preprocess.json", "image_size")):
        path = f"{layout.HISTORY}/model/{name}"
        try:
            content = dict(json.loads(source.get(files[f"model/{name}"], path).read_text(encoding="utf-8")))
            found.append((content.pop(wanted), content))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{state.tag}: {path} is damaged ({reason}); `chronomerge doctor` says more") from None
    (model, _), (size, preprocess) = found
    return {"model_cfg": model, "preprocess_cfg": {"size": size, **preprocess}}


def _note(state: State) -> dict[str, Any]:
    weights = state.entries[layout.DEPLOYED]
    return {
        "timeline": state.timeline,
        "step": state.step,
        "tag": state.tag,
        "commit": state.commit,
        "arrival": state.manifest.arrival,
        "model": state.params["base"]["model"],
        "weights": {"file": WEIGHTS, "md5": weights.md5, "size": weights.size},
        "metrics": {name: state.metrics[name] for name in MEANS},
    }


def _show(made: Sequence[Path], folder: Path) -> None:
    """Put finished files into ``folder``, their bytes on the disk before their names; not while another does so."""
    for path in made:
        atomic.sync(path)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in made:
            path.replace(folder / path.name)
    finally:
        os.close(lock)
