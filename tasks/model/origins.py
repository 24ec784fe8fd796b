"""Where the files of a model are: a local file or folder, or a repository of a hub, of which only they are fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from tasks import layout
from tasks.errors import UserError
from tasks.model import tokenizers
from tasks.model.sources import INDEX, SINGLE
from tasks.progress import Progress, silent
from tasks.storage import hub

LOCAL_DIR = "local-dir:"
"""How open_clip marks a folder."""
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
TORCH_NAMES = ("open_clip_pytorch_model.bin", "pytorch_model.bin")
"""What a folder may hold instead of safetensors."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
BESIDE = ("open_clip_config.json", "config.json", "preprocessor_config.json", *tokenizers.FILES)
"""What says what a model is, beside its weights."""


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model on this machine."""

    path: Path
    """A file (of a hub, also the one with the weights or their index), or a folder of a model or an adapter."""
    pin: hub.Pin | None = None
    """What they are, where they come from a hub."""
    root: Path = Path()
    """What the paths of `pin` are relative to."""

    @property
    def label(self) -> str:
        """What names it in messages: its path, or repository and commit, wherever the cache of the hub is."""
        return f"hf:{self.pin.repository}@{self.pin.commit[:12]}" if self.pin else str(self.path)


def located(
    text: str | Path,
    project: Path = Path(),
    progress: Progress = silent,
    *,
    public: Path | None = None,
    allowed: Callable[[str, int], None] | None = None,
) -> ModelFiles:
    """The model that a path (relative to ``project``), ``local-dir:FOLDER`` or the address of a hub names.

    ``public`` is as of `hub.look`; ``allowed`` is called with name and size of each file before it is downloaded.

    Raises:
        UserError: a folder is that of a state; the hub has no such repository, revision or file, or the repository no
            weights that are read.
        UnavailableError: the hub does not answer.
    """
    given = str(text)
    if not hub.is_address(given):
        path = project / given.removeprefix(LOCAL_DIR)
        require_no_state(path)
        return ModelFiles(path)
    address = hub.parse(given)
    snapshot = hub.look(address, public)

    def bring(names: Sequence[str]) -> Path:
        for name in names:
            if allowed and name in snapshot.sizes:
                allowed(name, snapshot.sizes[name])
        return snapshot.bring(names, progress)

    if address.file is None:
        names = files_of(snapshot.names, str(address))
    elif address.file.endswith(".json"):
        folder = bring([address.file])
        within = PurePosixPath(address.file).parent
        names = [address.file, *((within / shard).as_posix() for shard in shards_of(folder / address.file))]
    else:
        names = [address.file]
    folder = bring(names)
    # Of a folder of the cache one cannot say what else it holds.
    main = folder if names[0] == ADAPTER[0] and address.file is None else folder / names[0]
    return ModelFiles(main, replace(snapshot.pin(names, folder), licence=snapshot.licence()), folder)


def require_no_state(folder: Path) -> None:
    """Refuse the folder of a restored state, which has a model in it and is none.

    Raises:
        UserError: it is one.
    """
    if not layout.is_state(folder):
        return
    if (folder / layout.ROUTED).is_dir():
        raise UserError(
            f"{folder}: a restored state, not a model, and its deployment is routed, so that no one model of it is"
            f" deployed; name its expert, {layout.EXPERT} in it"
        )
    raise UserError(
        f"{folder}: a restored state, not a model; name its weights, {layout.DEPLOYED} in it, or write a folder "
        "with its model: chronomerge publish T --to DIR"
    )


def require_there(address: hub.Address) -> None:
    """Look whether a model, an adapter or a file is on a hub and may be read; nothing of it is downloaded.

    Raises:
        UserError, UnavailableError: as `located`.
    """
    snapshot = hub.look(address)
    snapshot.require(files_of(snapshot.names, str(address)) if address.file is None else [address.file])


def files_of(names: Collection[str], where: str, *, pickles: bool = False) -> list[str]:
    """The files that make up a model or an adapter, of all files of a folder or repository; what is read, first.

    ``where`` is what messages call it; ``pickles`` says whether those of torch will do.

    Raises:
        UserError: it has no weights, or only in pickles.
    """
    beside = [name for name in BESIDE if name in names]
    if ADAPTER[0] in names:
        if ADAPTER[1] not in names:
            raise UserError(f"{where}: an adapter ({ADAPTER[0]}) without {ADAPTER[1]}; save it with safetensors")
        return list(ADAPTER)
    if single := next((name for name in SINGLE if name in names), None):
        return [single, *beside]
    if INDEX in names:
        return [INDEX, *sorted(name for name in names if _SHARD.fullmatch(name)), *beside]
    if torch := next((name for name in TORCH_NAMES if pickles and name in names), None):
        return [torch, *beside]
    if pickled := sorted(name for name in names if name.endswith(PICKLES) and not name.startswith("training_args")):
        raise UserError(
            f"{where}: has its weights in pickles only ({pickled[0]}); name that file itself, which is then read with "
            "weights_only, or save the model as safetensors"
        )
    if others := sorted(name for name in names if name.endswith(".safetensors")):
        raise UserError(f"{where}: has neither {', '.join(SINGLE)} nor {INDEX}; name the file, such as {others[0]}")
    raise UserError(f"{where}: has no weights")


def entries(folder: Path) -> list[str]:
    """The names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def shards_of(index: Path) -> list[str]:
    """The files that an index JSON names, in its own folder; none where it is another file."""
    try:
        names = (
            sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            if index.suffix == ".json"
            else []
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []  # reading the model says what is wrong
    return [name for name in names if isinstance(name, str) and Path(name).name == name]
