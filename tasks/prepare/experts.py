"""Experts trained elsewhere: fetched as they are, and made checkpoints of the base's names.

An expert is a file or folder of any dialect, a torch file, or a PEFT adapter; on this machine, in S3 or on a hub. The
raw files hold it as it came (``expert.SUFFIX`` or the folder ``expert``), its origin where that is a hub
(``origin.json``), and the base (``base.safetensors``) where the expert is no complete model by itself. Whether it fits
the timeline's model in the end, the node ``train`` sees.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UnavailableError, UserError
from tasks.layout import is_there
from tasks.model import dialects, tokenizers
from tasks.model.adapters import is_adapter, read_adapter
from tasks.model.dtypes import require_precise
from tasks.model.fitting import FittedModel, NamesOnly, OnMismatch, fitted
from tasks.model.inputs import open_model
from tasks.model.origins import entries, files_of, located, require_no_state, shards_of
from tasks.model.sources import INDEX, FileSource, TensorEntry, TensorSource
from tasks.model.writing import write
from tasks.params import Arrival
from tasks.params import Base as BaseParams
from tasks.prepare import captured, files
from tasks.progress import Progress, silent
from tasks.storage import hub
from tasks.text import shortened

FILE = "expert.safetensors"
FOLDER = "expert"
BASE = "base.safetensors"
ORIGIN = "origin.json"
_BASE = "the base"
"""What notes call it, wherever its weights lie meanwhile."""
ABOUT = "expert.json"
"""Beside a prepared expert: what it was, and what of it is the base's."""
CHUNK = 4 << 20
"""Bytes per read of a download."""


@dataclass(frozen=True)
class Against:
    """What an expert is held against while it is fetched."""

    params: BaseParams
    base: Path | None = None
    """The base's weights, where they are known."""
    names: TensorSource | None = None
    """Its names and shapes, where no more is known."""


def check(expert: str, project: Path) -> None:
    """Look whether the file or folder is there; an address is only checked for its form.

    Raises:
        UserError: it isn't.
    """
    if hub.is_address(expert):
        hub.parse(expert)
    elif "://" in expert:
        _bucket_and_key(expert)
    elif not is_there(project / expert) and captured.pointer(project, expert) is None:
        raise UserError(f"expert {shortened(expert, 300)}: no such file or folder")
    else:
        require_no_state(project / expert)


def fetch(arrival: Arrival, into: Path, project: Path, against: Against, progress: Progress = silent) -> bool:
    """Put an expert into a folder of raw files, as it is, and look at its headers and at the name of its base.

    Returns whether it is a complete model only together with its base: an adapter, or one tower.

    Code in a checkpoint is never run: torch files are loaded with ``weights_only``. ``s3://`` addresses are read with
    the usual AWS environment variables (AWS_ENDPOINT_URL for another store than AWS), those of a hub with
    huggingface_hub's.

    Raises:
        UserError: no such file, no access, no readable checkpoint, or an adapter for another base.
    """
    expert = str(arrival.expert)
    into.mkdir(parents=True, exist_ok=True)
    try:
        _bring(expert, into, project, progress)
        with _named(expert, into), ExitStack() as stack:
            base = stack.enter_context(FileSource(against.base, _BASE)) if against.base else against.names
            if (note := adapted_base(raw(into), against.params)) is not None:
                progress(f"note on {arrival.name}: {note}", 1, 1)
            made = _opened(into, base, arrival.on_mismatch, stack)
            return made.of_base or is_adapter(raw(into))
    except BaseException:
        for path in (*into.glob("expert*"), into / ORIGIN):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise


def prepare(arrival: Arrival, raw_files: Path, base: Path | None, model: Path, target: Path) -> None:
    """`convert` an expert, and see to it that all of its values are finite.

    Raises:
        UserError: names the expert, and the tensor that is not finite or does not fit.
    """
    from tasks.model import checkpoints

    convert(arrival, raw_files, base, model, target)
    with _named(str(arrival.expert), raw_files, target):
        checkpoints.check_finite(target)


def convert(arrival: Arrival, raw_files: Path, base: Path | None, model: Path, target: Path) -> list[str]:
    """Write a fetched expert as a safetensors file under the base's names, and `ABOUT` beside it; returns its notes.

    One that has open_clip's names already is copied byte for byte. ``base`` has the base's weights where the expert
    needs them, ``model`` is the timeline's model folder.

    Raises:
        UserError: names the expert, and the tensor that does not fit; or its tokenizer is another than the model's.
    """
    path = raw(raw_files)
    with _named(str(arrival.expert), raw_files), ExitStack() as stack:
        names = open_model(path, "expert", stack, None).entries if not is_adapter(path) else {}
        plain_names = dialects.unwrapped(names)
        dialect = dialects.of(plain_names)
        like: TensorSource | None = None
        if base is not None:
            like = stack.enter_context(FileSource(base, _BASE))
        elif dialect is not None or plain_names.keys() != names.keys() or is_adapter(path):
            like = names_of(model)
        made = _opened(raw_files, like, arrival.on_mismatch, stack)
        require_precise({name: entry.dtype for name, entry in made.source.entries.items()}, made.source.label)
        if path.is_dir() and not is_adapter(path):
            tokenizers.require_same(path, model)
        if path.suffix == ".safetensors" and like is None:
            files.copy(path, target)
        else:
            write(made.source, made.source.entries, target)
        notes = [note.replace(f"{raw_files}/", "") for note in made.source.notes]
        about = {
            "read_as": "a PEFT adapter" if is_adapter(path) else dialect.name if dialect else "open_clip",
            "of_base": sorted([*made.lacking, *made.reshaped]), "notes": notes,
        }  # fmt: skip
    target.with_name(ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return notes


def raw(folder: Path) -> Path:
    """The expert among raw files.

    Raises:
        UserError: there is none.
    """
    experts = sorted(folder.glob("expert*"))
    if len(experts) != 1:
        raise UserError(f"{folder}: holds {len(experts)} experts, not one")
    return experts[0]


def origin(folder: Path) -> dict[str, Any] | None:
    """The repository, commit and files that an expert came from, where that is a hub."""
    path = folder / ORIGIN
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_origin(origin: Mapping[str, Any], folder: Path) -> None:
    """Note beside the raw files of an expert what `origin` reads."""
    (folder / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")


def adapted_base(path: Path, base: BaseParams) -> str | None:
    """What an adapter calls its base, held against the timeline's; a sentence where they cannot be compared.

    Raises:
        UserError: both are repositories of a hub, and they differ.
    """
    if not is_adapter(path):
        return None
    theirs = read_adapter(path).base
    if theirs is None:
        return "the adapter does not say what its base is"
    ours = next((text for text in (base.pretrained, base.model) if hub.is_address(text)), None)
    if ours is None or Path(theirs).is_absolute() or theirs.count("/") != 1:
        return f"the adapter names the base {theirs!r}, the timeline has {base.pretrained!r}; their shapes agree"
    if hub.parse(ours).repository.lower() != theirs.lower():
        raise UserError(
            f"is an adapter for {theirs!r}, and the timeline's base is {ours!r}; where the two are the same model, "
            "write so in base_model_name_or_path of adapter_config.json"
        )
    return None


def names_of(model: Path) -> TensorSource:
    """The names and shapes of a timeline's model, from its folder."""
    from tasks.model import models

    shapes = models.build(model, "meta").state_dict()
    return NamesOnly({name: TensorEntry("F32", tuple(t.shape)) for name, t in shapes.items()}, _BASE)


def _opened(raw_files: Path, base: TensorSource | None, on_mismatch: OnMismatch, stack: ExitStack) -> FittedModel:
    path = raw(raw_files)
    if is_adapter(path):
        return FittedModel(open_model(path, "expert", stack, base))
    source = open_model(path, "expert", stack, None)
    return fitted(source, base, on_mismatch) if base is not None else FittedModel(source)


def _bring(expert: str, into: Path, project: Path, progress: Progress) -> None:
    """Copy an expert's files to where raw files have them."""
    if hub.is_address(expert):
        place = located(expert, progress=progress)
        assert place.pin is not None
        _copy(place.root, list(place.pin.files), into, main=hub.parse(expert).file)
        write_origin({"address": expert, **place.pin.as_dict()}, into)
        return
    if "://" in expert:
        _download(expert, into, progress)
        return
    check(expert, project)
    path = project / expert
    if captured.pointer(project, expert) and (path.parent / ORIGIN).is_file():
        files.copy(path.parent / ORIGIN, into / ORIGIN)
    if path.is_dir():
        _copy(path, files_of(entries(path), f"expert {expert}", pickles=True), into)
    else:
        _copy(path.parent, [path.name, *shards_of(path)], into, main=path.name)


def _copy(folder: Path, names: list[str], into: Path, main: str | None = None) -> None:
    """Copy files of a folder: ``main`` alone to its own place, all others into the folder `FOLDER`."""
    if main is not None and not main.endswith(".json"):
        files.copy(folder / main, into / f"expert{Path(main).suffix.lower()}")
        return
    above = Path(main).parent if main else Path()
    for name in names:
        target = INDEX if name == main else str(Path(name).relative_to(above))
        files.copy(folder / name, into / FOLDER / target)


@contextmanager
def _named(expert: str, folder: Path, *others: Path) -> Iterator[None]:
    """Messages name an expert as the user does."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for path in (*sorted(folder.glob("expert*")), *others):
            text = text.removeprefix(f"{path}: ").replace(str(path), expert)
        kind = UnavailableError if isinstance(error, UnavailableError) else UserError
        raise kind(f"expert {expert}: {text.removeprefix(f'{expert}: ')}") from None


def _download(address: str, into: Path, progress: Progress) -> None:
    import s3fs
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, key = _bucket_and_key(address)
    try:
        store = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        if not key.endswith("/"):
            _read(store, f"{bucket}/{key}", into / f"expert{Path(key).suffix.lower()}", progress)
            return
        names = [Path(one).name for one in store.ls(f"{bucket}/{key}", detail=False)]
        for name in files_of(names, f"expert {address}", pickles=True):
            _read(store, f"{bucket}/{key}{name}", into / FOLDER / name, progress)
    except FileNotFoundError:
        raise UserError(f"expert {address}: no such object in the store") from None
    except PermissionError as error:
        raise UserError(f"expert {address}: access denied ({error}); check the AWS credentials") from None
    except (BotoCoreError, ClientError, OSError) as error:
        raise UserError(
            f"expert {address}: cannot be downloaded ({error}); check address, endpoint and network"
        ) from None


def _read(store: Any, path: str, target: Path, progress: Progress) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with store.open(path, "rb", block_size=CHUNK) as source, target.open("wb") as sink:
        done = 0
        while chunk := source.read(CHUNK):
            sink.write(chunk)
            done += len(chunk)
            progress("downloading the expert", done, int(source.size))
        sink.flush()
        os.fsync(sink.fileno())


def _bucket_and_key(address: str) -> tuple[str, str]:
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not address.startswith("s3://") or not bucket or not key:
        raise UserError(f"expert {address}: not of the form s3://BUCKET/KEY")
    return bucket, key
