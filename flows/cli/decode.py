"""``chronomerge decode``: a coded expert as a safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.terminal import out as terminal


def decode(
    file: Annotated[Path, typer.Argument(help="A coded expert (expert.weights).")] = Path("data/step/expert.weights"),
    base: Annotated[
        Path | None,
        typer.Option("--base", "-b", help="The base it is coded against [that of the project around the file]."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="[beside the file, .safetensors]")] = None,
) -> None:
    """Write a coded expert as a safetensors file, in a state that `git checkout` and `dvc checkout` brought."""
    from tasks import console
    from tasks.model import coded
    from tasks.units import size

    target = out or file.with_suffix(".safetensors")
    with console.shown() as progress:
        about = coded.decode(file, base or coded.base_around(file), target, progress)
    lost = f"; {about.error:.1%} of its change is lost" if about.error else ", every bit of it"
    terminal.print(f"{target}: {size(about.decoded.size)}, coded by {about.codec['name']}{lost}", soft_wrap=True)
