"""``chronomerge convert``: a model as a folder that open_clip or transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Library
from flows.cli.terminal import errors
from flows.cli.terminal import out as terminal


def convert(
    model: Annotated[
        Path, typer.Argument(help="A checkpoint file, the folder of a model or PEFT adapter, or hf:ORG/NAME.")
    ],
    to: Annotated[Library, typer.Option(help="The library that is to load it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")],
    base: Annotated[
        Path | None,
        typer.Option("--base", "-b", help="The model that an adapter adapts, or that a part of a model is part of."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the output: float32, bfloat16, float16 or float64 [the model's].")
    ] = None,
) -> None:
    """Write a model as a folder that open_clip or transformers loads, with its configuration and tokenizer."""
    from tasks import console
    from tasks.convert import convert as run
    from tasks.units import counted, size

    with console.shown() as progress:
        done = run(model, to.value, out, base=base, dtype=dtype, progress=progress)
    for note in done.notes:
        errors.print(f"note: {note}")
    how = (
        f"open_clip.create_model_and_transforms('local-dir:{out}')"
        if to is Library.open_clip
        else f"transformers.{done.transformers_class}.from_pretrained('{out}')"
    )
    terminal.print(f"{done.folder}: {counted(done.tensors, 'tensor')}, {size(done.bytes)}; load it with {how}")
