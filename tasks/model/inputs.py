"""What people have as models, as sources to read: files, folders, adapters and arrays, of any dialect."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.model import coded
from tasks.model.adapters import adapted, is_adapter, read_adapter
from tasks.model.origins import TORCH_NAMES, ModelFiles, located
from tasks.model.sources import TORCH_STARTS, DictSource, FileSource, TensorSource
from tasks.model.translated import as_the_base


def open_model(
    model: str | Path | ModelFiles | Mapping[str, Any], label: str, stack: ExitStack, base: TensorSource | None
) -> TensorSource:
    """A model to read, under the names of ``base`` where there is one; ``stack`` closes it.

    Args:
        model: a safetensors file, an index of shards, a torch file (loaded with ``weights_only``), a folder of one of
            these or of a PEFT adapter, the address of one on a hub, what `located` found, or a dictionary of arrays.
        label: what names it in messages where it has no path.

    Raises:
        UserError: it cannot be read, or is an adapter and there is no base, or one for another base.
    """
    if isinstance(model, Mapping):
        return _named(DictSource(model, label), base)
    origin = model if isinstance(model, ModelFiles) else located(model)
    source = _opened(origin.path, origin.label, stack, base)
    if origin.pin:
        source.notes.append(f"hf:{origin.pin.repository}: commit {origin.pin.commit}")
    return source


def _opened(path: Path, label: str, stack: ExitStack, base: TensorSource | None) -> TensorSource:
    if is_adapter(path):
        if base is None:
            raise UserError(f"{path}: is a PEFT adapter, which changes a base; give that base too (--base)")
        return adapted(base, replace(read_adapter(path), label=label))
    if coded.is_coded(path):
        if base is None:
            raise UserError(f"{path}: is a coded expert, the difference to a base; give that base too (--base)")
        return coded.opened(path, base, stack)
    file = _torch_file(path)
    if file is None:
        return _named(stack.enter_context(FileSource(path, label)), base)
    from tasks.model import models  # torch, which safetensors do without

    return _named(DictSource(models.read_checkpoint(file), label if file == path else str(file)), base)


def _named(source: TensorSource, base: TensorSource | None) -> TensorSource:
    return source if base is None else as_the_base(source, base)


def _torch_file(path: Path) -> Path | None:
    """The torch file that a path means, or None."""
    if path.is_dir():
        if any(path.glob("*.safetensors*")):
            return None
        return next((path / name for name in TORCH_NAMES if (path / name).is_file()), None)
    if not path.is_file() or path.suffix == ".safetensors":
        return None
    with path.open("rb") as file:
        return path if file.read(4).startswith(TORCH_STARTS) else None
