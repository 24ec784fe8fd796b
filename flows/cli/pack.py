"""``chronomerge pack`` and ``unpack``: many experts out of one set of arrays."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.terminal import out as terminal


class Masks(StrEnum):
    """How experts share their arrays."""

    emr = "emr"
    tall = "tall"


Base = Annotated[Path, typer.Option("--base", "-b", help="The weights that the experts were trained from.")]


def pack(
    base: Base,
    expert: Annotated[list[Path], typer.Option("--expert", "-e", help="An expert; give it for each.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    masks: Annotated[Masks, typer.Option(help="EMR-Merging, or TALL masks.")] = Masks.emr,
    lambda_: Annotated[
        float | None, typer.Option("--lambda", min=0, help="Of tall [the one of 0.2 to 0.6 that loses the least].")
    ] = None,
) -> None:
    """Write many experts as one shared task vector and a mask of one bit an entry for each."""
    from tasks import console
    from tasks.model import shared
    from tasks.units import size

    with console.shown() as progress:
        made = shared.pack(masks.value, expert, base, out, lambda_, progress)
    terminal.print(f"{out}: {size(out.stat().st_size)}, {len(made.experts)} experts by {made.kind}", soft_wrap=True)
    for number, one in enumerate(made.experts, start=1):
        how = "" if one.lambda_ is None else f", lambda {one.lambda_:g}"
        terminal.print(f"{number}  {one.name}: {one.error:.1%} of its change is lost{how}", soft_wrap=True)


def unpack(
    file: Annotated[Path, typer.Argument(help="What `chronomerge pack` wrote.")],
    number: Annotated[int, typer.Argument(metavar="EXPERT", help="Its number, from 1 on.", min=1)],
    base: Base,
    out: Annotated[Path, typer.Option("--out", "-o", help="The safetensors file to write.")],
) -> None:
    """Write one of the experts of a packed file as a safetensors file."""
    from tasks import console
    from tasks.model import shared

    with console.shown() as progress:
        one = shared.unpack(file, number - 1, base, out, progress)
    terminal.print(f"{out}: {one.name}; {one.error:.1%} of its change is lost", soft_wrap=True)
