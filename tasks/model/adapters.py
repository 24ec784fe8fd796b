"""PEFT's LoRA adapters as models: the base with the adapter's updates in it, computed where they are read.

An adapter is a folder with ``adapter_config.json`` and ``adapter_model.safetensors``. It holds two factors of each
module that it adapts: W = W_0 + s·B·A with s = α/r, or α/√r for rsLoRA (arXiv 2106.09685, 2312.03732). DoRA
(arXiv 2402.09353) stores the lengths of the rows separately: W = m·V/‖V‖ with V = W_0 + s·B·A.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.model import dialects
from tasks.model.dtypes import decode, encode, stored_as, width
from tasks.model.sources import FileSource, TensorEntry, TensorSource, raw_bytes
from tasks.model.translated import from_open_clip, to_open_clip
from tasks.text import shortened

CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ROWS_AT_ONCE = 1 << 22
"""Entries of an update that are computed at a time."""

_REFUSED = {
    "layer_replication": "replicated layers", "target_parameters": "adapted parameters", "use_qalora": "QA-LoRA",
    "trainable_token_indices": "trained tokens", "alora_invocation_tokens": "activated LoRA", "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow", "kasa_config": "KaSA", "velora_config": "VeLoRA", "megatron_config": "Megatron layers",
    "monteclora_config": "MonteCLoRA",
}  # fmt: skip
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations that change the base's own weights: the base that one has is not the one it was trained on."""

_DOUBLED = ".base_layer.out_proj.lora_"
"""peft's ``MultiheadAttention`` adds the update of ``out_proj`` twice, in ``merge``, which ``forward`` calls (seen in
version 0.21.2). So the model that was trained has it twice."""

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Update:
    """What an adapter does to one weight: ``up`` (out, r), ``down`` (r, in, …), the factor on their product."""

    up: Floats
    down: Floats
    scaling: float
    magnitude: Floats | None = None
    """DoRA's lengths; of rows, or for an embedding of columns."""
    turned: bool = False
    """The product is transposed to the weight: embeddings, and layers that store (in, out)."""

    @property
    def shape(self) -> tuple[int, ...]:
        rest = self.down.shape[1:]
        return (*rest, self.up.shape[0]) if self.turned else (self.up.shape[0], *rest)

    def rows(self, start: int, stop: int) -> Floats:
        """Rows of the update, flattened to a matrix."""
        if self.turned:
            return np.asarray(self.scaling * (self.down[:, start:stop].T @ self.up.T))
        return np.asarray(self.scaling * (self.up[start:stop] @ self.down.reshape(len(self.down), -1)))


@dataclass(frozen=True)
class Adapter:
    """An adapter that has been read: by the names of the base's tensors, without PEFT's prefix."""

    label: str
    base: str | None
    """What its configuration calls its base."""
    updates: Mapping[str, Update]
    """Name of a weight → its update."""
    biases: Mapping[str, Floats]
    """Name of a bias → what is added to it."""
    replaced: Mapping[str, tuple[str, Floats]]
    """Name → (dtype, values) of tensors that were trained as they are: ``modules_to_save``, ``bias``."""


_BASE = "base_model_name_or_path"
"""What its configuration calls its base."""
_LARGEST_ALPHA = 1e30
_LONGEST_MODULE = 255
"""Characters of a module's name that patterns are matched with."""


def is_adapter(path: Path) -> bool:
    """Whether this folder holds a PEFT adapter."""
    return (path / CONFIG).is_file()


def read_adapter(folder: Path) -> Adapter:
    """Read a LoRA adapter; its factors as float32 (float64 where they are).

    Raises:
        UserError: a file is missing or damaged, or the adapter is of a kind that is not supported; names it.
    """
    config = _config(folder)
    with FileSource(folder / _WEIGHTS) as file:
        tensors = {name: (entry.dtype, _floats(file, name)) for name, entry in file.entries.items()}
    updates: dict[str, Update] = {}
    biases: dict[str, Floats] = {}
    replaced: dict[str, tuple[str, Floats]] = {}
    factors: dict[str, dict[str, Floats]] = {}
    twice = set()
    for name, (dtype, values) in tensors.items():
        plain = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
        match = re.fullmatch(
            r"(.+)\.lora_(?:(A|B)\.(weight|bias)|embedding_(A|B)|(magnitude_vector)(?:\.weight)?)", plain
        )
        if match is None:
            if "lora_" in plain:
                raise UserError(f"{folder}: the adapter's tensor {name!r} is of no kind that is known here")
            replaced[plain.replace(".modules_to_save.", ".")] = dtype, values
        else:
            kind = f"bias_{match[2]}" if match[3] == "bias" else match[2] or (
                f"embedding_{match[4]}" if match[4] else "magnitude"
            )  # fmt: skip
            factors.setdefault(match[1], {})[kind] = values
            if _DOUBLED in name:
                twice.add(match[1])
    for module, parts in factors.items():
        turned = "embedding_A" in parts
        down, up = (parts.get(f"embedding_{x}" if turned else x) for x in "AB")
        if down is None or up is None or not _fit(down, up):
            raise UserError(f"{folder}: the adapter's factors of {module!r} are not complete, or do not fit together")
        rank = len(down)
        if config["ranks"] and rank not in config["ranks"]:
            raise UserError(
                f"{folder}: the factors of {module!r} have rank {rank}, and {CONFIG} says {config['ranks'][0]}; is it "
                "the configuration of another adapter? Its lora_alpha would scale them wrongly"
            )
        alpha = _of_pattern(config["alpha_pattern"], module.removesuffix(".out_proj"), config["lora_alpha"])
        scaling = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
        if module in twice:
            scaling *= 2
        turned = turned or bool(config["fan_in_fan_out"])
        updates[module] = Update(up.reshape(len(up), rank), down, scaling, parts.get("magnitude"), turned)
        if "bias_B" in parts:
            biases[f"{module}.bias"] = scaling * parts["bias_B"]
    if not updates and not replaced:
        raise UserError(f"{folder}: the adapter holds no tensors")
    return Adapter(str(folder), config.get(_BASE), updates, biases, replaced)


def adapted(base: TensorSource, adapter: Adapter) -> TensorSource:
    """The base with the adapter in it, under the base's names.

    The adapter may name modules as transformers does where the base has open_clip's names, and the other way round.

    Raises:
        UserError: the adapter adapts what the base lacks, or has other shapes: it is for another base.
    """
    modules = [*adapter.updates, *adapter.replaced]
    if any(_target(base, name) for name in modules):
        return Adapted(base, adapter)
    for dialect in dialects.available().values():
        if dialect.speaks_open_clip(base.entries):
            other = from_open_clip(base, dialect)
            if any(_target(other, name) for name in modules):
                return to_open_clip(Adapted(other, adapter), dialect)
        elif dialect.knows(base.entries):
            other = to_open_clip(base, dialect)
            if any(_target(other, name) for name in modules):
                return from_open_clip(Adapted(other, adapter), dialect)
    raise UserError(
        f"{adapter.label}: adapts {modules[0]!r}, and {base.label} has no such module; the adapter is for another base"
        + (f" (its configuration names {shortened(adapter.base, 300)!r})" if adapter.base else "")
    )


class Adapted:
    """A base with an adapter in it, whose names are the base's.

    Half-precision weights that the adapter changes come out as float32: rounding them would lose small updates.
    """

    def __init__(self, base: TensorSource, adapter: Adapter) -> None:
        self._base, self._adapter = base, adapter
        self.label = adapter.label
        its = Path(adapter.base or "")
        named = f" of {shortened(its.name if its.is_absolute() else adapter.base, 300)!r}" if adapter.base else ""
        self.notes = [f"{adapter.label}: a PEFT adapter{named}, applied to {base.label}"]
        self._updates = {self._weight(module): update for module, update in adapter.updates.items()}
        self._lengths: dict[str, Floats] = {}
        entries = dict(base.entries)
        for name, update in self._updates.items():
            self._require_shape(name, update.shape)
            entries[name] = _widened(entries[name])
        for name, values in adapter.biases.items():
            self._require_shape(name, values.shape)
            entries[name] = _widened(entries[name])
        for name, (dtype, values) in adapter.replaced.items():
            self._require_shape(name, values.shape)
            entries[name] = TensorEntry(dtype, entries[name].shape)
        self.entries: Mapping[str, TensorEntry] = entries

    def _weight(self, module: str) -> str:
        name = _target(self._base, module)
        if name is None:
            raise UserError(
                f"{self.label}: adapts {module!r}, and {self._base.label} has no such module; is the adapter for "
                "another base?"
            )
        return name

    def _require_shape(self, name: str, shape: tuple[int, ...]) -> None:
        entry = self._base.entries.get(name)
        if entry is None:
            raise UserError(f"{self.label}: holds {name!r}, which {self._base.label} lacks; is it for another base?")
        if entry.shape != shape:
            raise UserError(
                f"{self.label}: changes {name!r} as if of shape {list(shape)}, {self._base.label} has "
                f"{list(entry.shape)}; is it for another base?"
            )

    def read_into(self, name: str, start: int, buffer: NDArray[Any]) -> None:
        """Fill ``buffer`` with the raw bytes of a tensor, from byte ``start`` on."""
        flat = buffer.reshape(-1).view(np.uint8)
        replaced = self._adapter.replaced.get(name)
        if replaced is None and name not in self._updates and name not in self._adapter.biases:
            self._base.read_into(name, start, flat)
            return
        entry = self.entries[name]
        size = width(entry.dtype)
        first, last = start // size, -(-(start + flat.size) // size)
        if replaced is not None:
            values = replaced[1].reshape(-1)[first:last]
        elif name in self._updates:
            values = self._updated(name, first, last)
        else:
            values = self._floats(name, first, last) + self._adapter.biases[name].reshape(-1)[first:last]
        stored = encode(values, entry.dtype).view(np.uint8)
        flat[:] = stored[start - first * size : start - first * size + flat.size]

    def _updated(self, name: str, first: int, last: int) -> Floats:
        """Entries [first, last) of W, which are computed by complete rows."""
        update = self._updates[name]
        columns = math.prod(update.shape[1:])
        top, bottom = first // columns, -(-last // columns)
        matrix = self._floats(name, top * columns, bottom * columns).reshape(-1, columns) + update.rows(top, bottom)
        if update.magnitude is not None:
            magnitude = update.magnitude.reshape(-1)
            if magnitude.size == columns and update.turned:
                matrix = matrix * (magnitude / self._column_lengths(name))
            else:
                matrix = matrix * (magnitude[top:bottom] / np.linalg.norm(matrix, axis=1))[:, None]
        return np.asarray(matrix.reshape(-1)[first - top * columns : last - top * columns])

    def _column_lengths(self, name: str) -> Floats:
        """‖V‖ of every column, for layers whose outputs are columns; taken once."""
        if name not in self._lengths:
            update, total = self._updates[name], 0.0
            rows, columns = update.shape[0], math.prod(update.shape[1:])
            step = max(1, _ROWS_AT_ONCE // columns)
            for top in range(0, rows, step):
                bottom = min(rows, top + step)
                part = self._floats(name, top * columns, bottom * columns).reshape(-1, columns)
                total = total + np.square(part + update.rows(top, bottom), dtype=np.float64).sum(axis=0)
            self._lengths[name] = np.sqrt(total).astype(np.float32)
        return self._lengths[name]

    def _floats(self, name: str, first: int, last: int) -> Floats:
        dtype = self._base.entries[name].dtype
        raw = raw_bytes(self._base, name, first * width(dtype), (last - first) * width(dtype))
        return decode(raw.view(stored_as(dtype)), dtype, np.float64 if dtype == "F64" else np.float32)


def _target(base: TensorSource, module: str) -> str | None:
    """The weight of a module: torch's packed attention has it under another name; a tensor may be named itself."""
    return next((n for n in (f"{module}.weight", f"{module}.in_proj_weight", module) if n in base.entries), None)


def _widened(entry: TensorEntry) -> TensorEntry:
    return entry if entry.dtype in ("F32", "F64") else replace(entry, dtype="F32")


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not a readable adapter configuration ({' '.join(str(error).split())[:200]})"
        ) from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: not an adapter configuration, which is a JSON object")
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"{path}: adapters of the kind {kind!r} are not supported, only LORA (with rsLoRA and DoRA); merge it into "
            "its base first, with peft's merge_and_unload"
        )
    if refused := [words for key, words in _REFUSED.items() if raw.get(key)]:
        raise UserError(f"{path}: LoRA with {', '.join(refused)} is not supported; use peft's merge_and_unload")
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise UserError(
            f"{path}: was initialized by {start}, which changes the base's weights; save it with peft's "
            "path_initial_model_for_weight_conversion, or merge it with merge_and_unload"
        )
    config = {"alpha_pattern": {}, "use_rslora": False, "fan_in_fan_out": False, "lora_alpha": 8, **raw}
    patterns = config["alpha_pattern"] or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{path}: alpha_pattern should be a mapping of patterns to numbers")
    for pattern in patterns:
        # Such a pattern can keep Python's matcher busy for years.
        if re.search(r"\)[*+?{]", pattern) or len(re.findall(r"[*+{]", pattern)) > 2:
            raise UserError(f"{path}: alpha_pattern: {pattern!r:.100} repeats too much; name the modules one by one")
    alphas = [config["lora_alpha"], *patterns.values()]
    if not all(isinstance(a, int | float) and not isinstance(a, bool) and abs(a) < _LARGEST_ALPHA for a in alphas):
        raise UserError(f"{path}: lora_alpha and the values of alpha_pattern should be numbers")
    if not isinstance(raw.get(_BASE) or "", str):
        raise UserError(f"{path}: {_BASE} should be the name of a model")
    of_modules = raw.get("rank_pattern") or {}
    if not isinstance(of_modules, dict):
        raise UserError(f"{path}: rank_pattern should be a mapping of patterns to numbers")
    ranks = [raw["r"], *of_modules.values()] if "r" in raw else []
    return {**config, "alpha_pattern": patterns, "ranks": ranks}


def _fit(down: Floats, up: Floats) -> bool:
    """Whether ``up`` (out × rank) can be multiplied by ``down`` (rank × in, …); a convolution's ends in axes of 1."""
    return min(down.ndim, up.ndim) >= 2 and 0 < len(down) == up.shape[1] and up.size == len(up) * len(down)


def _of_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that is the end of a module's name, as PEFT matches them."""
    if patterns and len(module) > _LONGEST_MODULE:
        raise UserError(f"alpha_pattern: {module[:60]!r}… has more than {_LONGEST_MODULE} characters")
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error:
            raise UserError(f"alpha_pattern: {pattern!r:.100} is not a regular expression") from None
    return default


def _floats(source: TensorSource, name: str) -> Floats:
    entry = source.entries[name]
    if entry.dtype not in ("F64", "F32", "F16", "BF16"):
        raise UserError(f"{source.label}: tensor {name!r} is {entry.dtype}; adapters are read in floating point only")
    raw = raw_bytes(source, name, 0, entry.bytes).view(stored_as(entry.dtype))
    values = decode(raw, entry.dtype, np.float64 if entry.dtype == "F64" else np.float32).reshape(entry.shape)
    if not np.isfinite(values).all():
        raise UserError(f"{source.label}: tensor {name!r} holds NaN or infinity; an adapter that diverged is of no use")
    return values
