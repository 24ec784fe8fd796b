"""One model written anew as another library has it: names, layout, configuration, preprocessing, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from tasks.errors import UserError
from tasks.merge.layout import require_model
from tasks.model import configurations, dialects, dtypes, tokenizers
from tasks.model.adapters import is_adapter
from tasks.model.dtypes import FLOATS
from tasks.model.fitting import fitted
from tasks.model.inputs import open_model
from tasks.model.origins import located
from tasks.model.siglip import is_siglip
from tasks.model.sources import TensorEntry, TensorSource
from tasks.model.translated import from_open_clip, plainly_named, to_open_clip, without_buffers
from tasks.model.writing import place, require_new, write
from tasks.progress import Progress, silent
from tasks.storage import atomic

Library = Literal["open_clip", "transformers"]
LIBRARIES: tuple[Library, ...] = get_args(Library)

WEIGHTS: Mapping[str, str] = {"open_clip": "open_clip_model.safetensors", "transformers": "model.safetensors"}


@dataclass
class Converted:
    """What `convert` wrote."""

    folder: Path
    tensors: int
    bytes: int
    transformers_class: str
    """transformers' class of such a model."""
    notes: list[str] = field(default_factory=list)
    """What was translated, taken from the base, left out or written beside the weights."""


def convert(
    model: Path,
    to: Library,
    out: Path,
    *,
    base: Path | None = None,
    dtype: str | None = None,
    progress: Progress = silent,
) -> Converted:
    """Write ``model`` into the new folder ``out`` as another library's model; memory is flat.

    Args:
        model: a checkpoint file, a model's folder of either library, a PEFT adapter's folder (which needs ``base``), or
            the address of one on a hub.
        to: ``open_clip`` (loads as ``local-dir:OUT``) or ``transformers`` (``from_pretrained(OUT)`` of its CLIPModel or
            SiglipModel).
        base: the model that an adapter adapts, that a vision model's text tower comes from, or whose configuration a
            checkpoint without one has.
        dtype: float32, bfloat16, float16 or float64 instead of the model's own.

    Raises:
        UserError: an input is unreadable, no configuration is known, the architecture has no like in the other
            library, or ``out`` exists.
    """
    written = dtypes.named(dtype)
    require_new(out)
    with ExitStack() as stack:
        opened = located(model, progress=progress)
        found_base = located(base, progress=progress) if base else None
        origin = open_model(found_base, "base", stack, None) if found_base else None
        source = plainly_named(open_model(opened, "model", stack, origin))
        require_model(str(model), source)
        dtypes.require_precise({name: entry.dtype for name, entry in source.entries.items()}, str(model))
        notes = source.notes
        if origin is not None:
            source = _completed(source, plainly_named(origin))
        places = [opened.path, *([found_base.path] if found_base else [])]
        config = _configuration(places, model)
        named = _in(to, source, config)
        _require_all(named, config, to, str(model))
        with atomic.private_folder(out.parent / f".{out.name}.part") as part:
            made = part / "model"
            made.mkdir()
            entries = {n: _cast(e, written) for n, e in named.entries.items()}
            write(named, entries, made / WEIGHTS[to], progress)
            notes = [*notes, *_write_rest(to, config, made, places)]
            place(made, out)
    size = sum(entry.bytes for entry in entries.values())
    return Converted(out, len(entries), size, "SiglipModel" if is_siglip(config["model_cfg"]) else "CLIPModel", notes)


def _in(to: Library, source: TensorSource, config: Mapping[str, Any]) -> TensorSource:
    """Under the names of the library, without buffers that hold nothing learned."""
    theirs, expected = dialects.of(source.entries), _dialect_for(config)
    if to == "open_clip":
        return to_open_clip(source, theirs) if theirs else without_buffers(source, expected.ignored_in_open_clip)
    return without_buffers(source, theirs.ignored) if theirs else from_open_clip(source, expected)


def _dialect_for(config: Mapping[str, Any]) -> dialects.Dialect:
    """That of the model which transformers has for open_clip's configuration."""
    return dialects.available()["transformers_siglip" if is_siglip(config["model_cfg"]) else "transformers_clip"]


def _completed(source: TensorSource, base: TensorSource) -> TensorSource:
    """What a part of a model lacks (a vision model its text tower) is the base's."""
    made = fitted(source, base)
    strange = sorted(made.source.entries.keys() - base.entries.keys())
    if strange:
        raise UserError(f"{source.label}: has {strange[0]!r}, which the base lacks; is it of another architecture?")
    return made.source


def _configuration(places: list[Path], model: Path) -> dict[str, Any]:
    """That of the first place that has one; an adapter's is of another kind."""
    failure: UserError | None = None
    for path in places:
        if is_adapter(path):
            continue
        folder = path if path.is_dir() else path.parent
        try:
            if (config := configurations.of_folder(folder)) is not None:
                return config
        except configurations.PartOfModelError as error:  # the base's may be that of the model
            failure = failure or error
    raise failure or UserError(
        f"{model}: no {configurations.OPEN_CLIP} or {configurations.TRANSFORMERS} beside it says what model this is; "
        "give a folder that has one, as the model or as its base (--base)"
    )


def _require_all(source: TensorSource, config: Mapping[str, Any], to: Library, model: str) -> None:
    """Every tensor that the configuration's model has must be there, of its shape."""
    from tasks.model.models import shapes_of

    expected = shapes_of(config["model_cfg"], model)
    ours = source if to == "open_clip" else to_open_clip(source, _dialect_for(config))
    given = {name.removeprefix("text."): entry.shape for name, entry in ours.entries.items()}
    wanted = {name.removeprefix("text."): shape for name, shape in expected.items()}
    for name in sorted(wanted.keys() | given.keys()):
        if name not in given:
            raise UserError(
                f"{model}: lacks the tensor {name!r} that its configuration asks for; give the base (--base)"
            )
        if name not in wanted:
            raise UserError(f"{model}: has a tensor {name!r} that its configuration knows nothing of")
        if given[name] != wanted[name] and {given[name], wanted[name]} != {(), (1,)}:
            raise UserError(
                f"{model}: {name!r} has shape {list(given[name])}, its configuration asks for {list(wanted[name])}"
            )


def _cast(entry: TensorEntry, dtype: str | None) -> TensorEntry:
    return TensorEntry(dtype, entry.shape) if dtype and entry.dtype in FLOATS else entry


def _write_rest(to: Library, config: dict[str, Any], made: Path, sources: list[Path]) -> list[str]:
    """Configuration, preprocessing and tokenizer; returns what to tell of them."""
    text = config["model_cfg"]["text_cfg"]
    files = (
        {configurations.OPEN_CLIP: config}
        if to == "open_clip"
        else configurations.to_transformers(config, str(sources[0]))
    )
    for name, content in files.items():
        (made / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for path in sources:
        beside = path if path.is_dir() else path.parent
        if names := tokenizers.copy(beside, made):
            if to == "open_clip" and (beside / configurations.TRANSFORMERS).is_file():
                tokenizers.name_class(made)
            return [f"tokenizer: {', '.join(names)} of {path}"]
    if name := text.get("hf_tokenizer_name"):
        wanted = "the model's own" if name == tokenizers.BESIDE else f"those of {name!r:.80}"
        return [f"no tokenizer: none is beside the model; save the tokenizer's files in the folder yourself, {wanted}"]
    if to == "open_clip":
        return []  # open_clip has its own
    if (text.get("vocab_size") or tokenizers.CLIP_WORDS) == tokenizers.CLIP_WORDS:
        tokenizers.write_clip(made, text.get("context_length") or 77)
        return ["tokenizer: CLIP's own"]
    return [f"no tokenizer: none is beside the model, and {text['vocab_size']} words are not CLIP's vocabulary"]


def _shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
