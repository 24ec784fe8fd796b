"""Bring the model of a state to where others pick it up: a folder that open_clip or transformers loads.

Each file is replaced as a whole, the note last: so what the note names lies there. Files that an earlier note names and
the new one does not are removed, where they still have the bytes of that note. Other files in the folder stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import layout
from tasks.convert import LIBRARIES, Library, convert
from tasks.errors import UserError
from tasks.model import configurations, dtypes, tokenizers
from tasks.params import load
from tasks.progress import Progress, silent
from tasks.record import pointers, restoration, retention, sharing, stores, timelines
from tasks.record.state import State
from tasks.scores import MEANS
from tasks.storage import atomic, dvc_config, objects, places
from tasks.storage.cache import Cache, md5_of
from tasks.storage.dvc import Dvc
from tasks.storage.fetching import TRIES
from tasks.storage.objects import Depot

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"
NOTE = "state.json"
"""Which state this is, its scores, and the md5 of its weights and of every other file."""
READS = (layout.DEPLOYED, layout.ROUTED, layout.HISTORY)
"""What a model's folder is made of, as far as a state has it."""
_ENDING = ".safetensors"
"""Of the file that has the weights."""
HEADS = "heads"
"""The folder with the files of heads, where the state has any; `tasks.evaluate.headfile` says what is in them."""
ROUTED = "routed"
"""The folder with the router and the deltas of a routed deployment, whose weights are the base's."""
_BASE = "weights/base.safetensors"
"""In the history of a state."""
_FOLDERS = (HEADS, ROUTED)
"""What a model's folder may have beside files."""
TOKENIZER = f"model/{tokenizers.FOLDER}/"
"""Where the tokenizer's files are in the history of a state; a state of before there were any has none."""


@dataclass(frozen=True)
class Form:
    """How a model is written: for which library, and with which floating type (None: the state's own)."""

    library: Library = "open_clip"
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.library not in LIBRARIES:
            raise UserError(f"unknown format {self.library!r}; there are {', '.join(LIBRARIES)}")
        dtypes.named(self.dtype)


@dataclass(frozen=True)
class Delivered:
    """A state's model in a folder: new there or not, how many bytes came from the remote, and what to tell of it."""

    state: State
    folder: Path
    new: bool
    fetched: int
    notes: tuple[str, ...] = ()


def fetch_model(
    project: Path,
    timeline: str,
    to: Path,
    *,
    pointer: str = "deployed",
    form: Form = Form(),
    progress: Progress = silent,
) -> Delivered:
    """Have the model of the state that a pointer is at in a folder.

    Raises:
        UserError: the pointer is at no state, its weights cannot be had, the library has no such architecture, or the
            folder is one of ours.
        RemoteError: the store breaks off.
    """
    folder = places.output(to, folder=True)
    restoration.require_elsewhere(project, folder)
    shared = load(project / "params.yaml").store.git
    if shared:
        sharing.follow(project, timeline, shared)
    state = pointed(project, timeline, pointer)
    _require_form(state, form)
    if is_there(state, folder, form):
        return Delivered(state, folder, new=False, fetched=0)
    return deliver(state, folder, form, progress)


def pointed(project: Path, timeline: str, pointer: str) -> State:
    """The state that a pointer is at, ``deployed`` or another.

    Raises:
        UserError: there is no such pointer.
    """
    if pointer != "deployed":
        return pointers.find(project, timeline, pointer)
    state = timelines.deployed(project, timeline)
    if state is None:
        raise UserError(
            f"timeline {timeline!r} has no deployed state in this clone; `git fetch --tags --force` brings it"
        )
    return state


def deliver(state: State, folder: Path, form: Form = Form(), progress: Progress = silent) -> Delivered:
    """Put a state's model and the note into a folder, which may have an earlier one.

    Raises:
        UserError: as `gather`.
        RemoteError: the store breaks off.
    """
    _require_form(state, form)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _delivered(state, folder, form, progress)
    except BaseException:
        if new and not any(folder.iterdir()):  # another process may have brought something there meanwhile
            folder.rmdir()
        raise


def _delivered(state: State, folder: Path, form: Form, progress: Progress) -> Delivered:
    with atomic.private_folder(folder / ".chronomerge.part") as part:
        with opened(state, part, (*READS, layout.HEADS)) as source:
            made, notes = gather(source, part, form, progress)
            for path, name in ((layout.HEADS, HEADS), (layout.ROUTED, ROUTED)):
                if path in state.entries:
                    _bring_folder(source, path, name, made / name)
        note = {**_facts(state, form), **_hashes(made)}
        (made / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
        _show(made, folder, note["files"])
    return Delivered(state, folder, new=True, fetched=source.fetched, notes=notes)


@contextlib.contextmanager
def opened(state: State, part: Path, paths: Collection[str] = READS) -> Iterator[StateObjects]:
    """What a state has of some paths, as files in the private folder ``part``; the store only where needed.

    Raises:
        UserError: neither cache nor store has the right bytes.
        RemoteError: the store breaks off.
    """
    project = state.project
    cache = Cache(dvc_config.cache_dir(project))
    paths = [path for path in paths if path in state.entries]
    cache.drop_damaged(state.manifest.deployed)  # comes from the remote
    with stores.opened_for(project, [(state, paths)]) as remote:
        if remote is None:
            yield StateObjects(state, cache, None, part)
            return
        with Dvc(project) as dvc:
            try:
                yield StateObjects(state, cache, Depot(project, cache, remote, dvc), part)
            except UserError:
                retention.require_weights(state)
                raise


def gather(source: StateObjects, part: Path, form: Form, progress: Progress = silent) -> tuple[Path, tuple[str, ...]]:
    """Make the model's folder in the private folder ``part``: weights, configuration, tokenizer; and notes on it.

    Of a routed deployment the weights are the base's.

    Raises:
        UserError: bytes cannot be had, or the library has no such architecture.
        RemoteError: the store breaks off.
    """
    state, made = source.state, part / "model"
    made.mkdir()
    files = source.listing(layout.HISTORY)
    if not state.routed:
        source.get(state.entries[layout.DEPLOYED].md5, layout.DEPLOYED).rename(made / WEIGHTS)
    elif _BASE in files:
        source.get(files[_BASE], f"{layout.HISTORY}/{_BASE}").rename(made / WEIGHTS)
    else:
        raise UserError(f"{state.tag}: its {layout.HISTORY} has no {_BASE}; `chronomerge doctor` says more")
    config = _config(state, source, files)
    (made / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    tokenizer = [name for name in tokenizers.FILES if f"{TOKENIZER}{name}" in files]
    for name in tokenizer:
        source.get(files[f"{TOKENIZER}{name}"], f"{layout.HISTORY}/{TOKENIZER}{name}").rename(made / name)
    notes: list[str] = []
    if (wanted := config["model_cfg"]["text_cfg"].get("hf_tokenizer_name")) and not tokenizer:
        notes.append(
            f"{state.tag} was recorded without its tokenizer's files; save those of {wanted!r} in the folder yourself"
        )
    if form != Form():
        done = convert(made, form.library, part / "converted", dtype=form.dtype, progress=progress)
        made = done.folder
        notes += done.notes
    return made, tuple(notes)


def _bring_folder(source: StateObjects, path: str, shown: str, into: Path) -> None:
    into.mkdir()
    files = source.listing(path)
    for name in sorted(name for name in files if _is_ours(f"{shown}/{name}")):
        source.get(files[name], f"{path}/{name}").rename(into / name)


def _require_form(state: State, form: Form) -> None:
    """Refuse to convert a routed deployment: deltas are those of the base's own tensors.

    Raises:
        UserError: it would be converted.
    """
    if state.routed and form != Form():
        raise UserError(
            f"{state.tag} is a routed deployment: a base, deltas of its tensors and a router, which are brought as they"
            " are; leave --format and --dtype out"
        )


def is_there(state: State, folder: Path, form: Form = Form()) -> bool:
    """Whether a folder has the model of a state in that form already; every file is hashed."""
    try:
        noted = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        files = {str(name): md5_of(folder / name) for name in noted["files"] if _is_ours(name)}
    except (OSError, ValueError, TypeError, KeyError):
        return False
    if not any(_is_weights(name) for name in files):
        return False
    if form == Form() and not state.routed and files.get(WEIGHTS) != state.entries[layout.DEPLOYED].md5:
        return False
    return bool(files == noted["files"] and noted == {**_facts(state, form), **_hashes(folder, files)})


class StateObjects:
    """Objects of a state, out of the cache or else the remote, as files of their own in the folder ``into``."""

    def __init__(self, state: State, cache: Cache, depot: Depot | None, into: Path):
        self.state, self._cache, self._depot, self._into = state, cache, depot, into
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
        raise UserError(f"{where} the bytes of {path} of {self.state.tag}; `chronomerge doctor` says more")

    def listing(self, path: str) -> dict[str, str]:
        """The files of a folder of the state: path in it → md5."""
        md5 = self.state.entries[path].md5
        listed = objects.members_in_cache([md5], self._cache)
        if md5 not in listed and self._depot:
            listed = objects.members([md5], self._depot)
        if md5 not in listed:
            raise UserError(f"the list of files in {path} of {self.state.tag} cannot be had (object {md5})")
        return listed[md5]


def _config(state: State, source: StateObjects, files: Mapping[str, str]) -> dict[str, Any]:
    """The model in open_clip's own format; see `tasks.model.models` for what lies in the history."""
    parts = []
    for name, wanted in (("model.json", "model_cfg"), ("preprocess.json", "image_size")):
        path = f"{layout.HISTORY}/model/{name}"
        try:
            content = dict(json.loads(source.get(files[f"model/{name}"], path).read_text(encoding="utf-8")))
            parts.append((content.pop(wanted), content))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{state.tag}: {path} is damaged ({reason}); `chronomerge doctor` says more") from None
    (model, _), (size, preprocess) = parts
    if not isinstance(model, dict) or not isinstance(model.get("text_cfg"), dict):
        raise UserError(f"{state.tag}: {layout.HISTORY}/model/model.json is damaged (it has no text_cfg)")
    try:
        configurations.require_no_address(model)
        tokenizers.own_settings(model["text_cfg"])  # open_clip would pass on any, ``trust_remote_code`` too
    except UserError as error:
        raise UserError(f"{state.tag}: {layout.HISTORY}/model/model.json: {error}") from None
    return {"model_cfg": model, "preprocess_cfg": {"size": size, **preprocess}}


def _facts(state: State, form: Form) -> dict[str, Any]:
    return {
        "timeline": state.timeline,
        "step": state.step,
        "tag": state.tag,
        "commit": state.commit,
        "arrival": state.manifest.arrival,
        "model": state.params["base"]["model"],
        "format": form.library,
        "dtype": form.dtype,
        "metrics": {name: state.metrics[name] for name in MEANS},
    }


def _hashes(folder: Path, files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The md5 of each of our files in a folder, and which of them has the weights."""
    if files is None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): md5_of(path) for path in paths}
    weights = next(name for name in files if _is_weights(name))
    return {
        "weights": {"file": weights, "md5": files[weights], "size": (folder / weights).stat().st_size},
        "files": dict(files),
    }


def _show(made: Path, folder: Path, files: Mapping[str, str]) -> None:
    """Put finished files into ``folder``, their bytes on the disk before their names; not while another does so."""
    for path in made.rglob("*"):
        if path.is_file():
            atomic.sync(path)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        left = _left_behind(folder, files)
        for name in (*files, NOTE):
            (folder / name).parent.mkdir(exist_ok=True)
            (made / name).replace(folder / name)
        for path in left:
            path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _left_behind(folder: Path, files: Mapping[str, str]) -> Sequence[Path]:
    """Files of an earlier delivery that this one does not replace: the weights of another state would still load."""
    try:
        noted = dict(json.loads((folder / NOTE).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, TypeError, KeyError):
        return []
    left = [name for name in noted if name not in files and _is_ours(name)]
    return [folder / name for name in left if (folder / name).is_file() and md5_of(folder / name) == noted[name]]


def _is_ours(name: str) -> bool:
    """Whether a note may name this file: one in the folder itself, of a head or of a route; never one elsewhere."""
    path = Path(name)
    inside = path.as_posix() == name and str(path.parent) in _FOLDERS and path.name not in ("", "..")
    return path.name == name or inside


def _is_weights(name: str) -> bool:
    return name.endswith(_ENDING) and "/" not in name
