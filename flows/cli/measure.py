"""``chronomerge measure``: what a model's own data says about its weights, for merging techniques that look at data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli import terminal
from tasks.errors import UserError


def measure(
    model: Annotated[str, typer.Option("--model", "-m", help="A checkpoint or a model's folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The statistics file, FILE.stats.safetensors.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", "-d", metavar="SOURCE", help="As in params.yaml: icons:food, images:FOLDER; repeatable."
        ),
    ] = None,
    statistics: Annotated[str, typer.Option(help="fisher, gram, or both: fisher,gram.")] = "fisher,gram",
    samples: Annotated[int, typer.Option(min=1, help="At most so many samples, drawn with the seed.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples, and of the classes drawn for the Fisher.")] = 0,
    architecture: Annotated[
        str | None,
        typer.Option(help="open_clip's name of the model, or its configuration's file [what lies beside the weights]."),
    ] = None,
    own: Annotated[
        str | None,
        typer.Option("--with", metavar="FILE.py:FUNCTION", help="Your own function, for a model of any other kind."),
    ] = None,
    diagonal_above: Annotated[
        int, typer.Option(min=0, help="Inputs beyond which a Gram matrix is its diagonal alone.")
    ] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="What was measured, as JSON.")] = False,
) -> None:
    """Measure a model on data, for techniques such as fisher and regmean (see `chronomerge merge --statistics`)."""
    from tasks import console
    from tasks.measure import measure_clip, measure_own
    from tasks.storage import places
    from tasks.units import size

    if (own is None) == (not data):
        raise UserError("say what to measure on: --data SOURCE, or --with FILE.py:FUNCTION for a model of another kind")
    places.output(out)
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: give a .safetensors file, such as {out.with_suffix('.stats.safetensors').name}")
    kinds = [kind.strip() for kind in statistics.split(",")]
    with console.shown() as progress:
        if own is not None:
            done = measure_own(
                own, model, out, statistics=kinds, seed=seed, widest=diagonal_above, progress=progress
            )  # fmt: skip
        else:
            done = measure_clip(
                model, data or [], out, architecture=architecture, statistics=kinds, samples=samples, seed=seed,
                widest=diagonal_above, progress=progress,
            )  # fmt: skip
    if as_json:
        terminal.print_json({**done.facts.as_json(), "tensors": done.tensors, "without_gram": list(done.left_out)})
        return
    terminal.out.print(
        f"{out}: {done.tensors} tensors, {size(done.bytes)}, measured on {done.facts.samples} "
        f"sample{'s' * (done.facts.samples != 1)} ({done.facts.estimator})"
    )
    if done.left_out:
        shown = ", ".join(done.left_out[:5]) + (f" and {len(done.left_out) - 5} more" if len(done.left_out) > 5 else "")
        terminal.out.print(f"  no Gram matrix, because no product with them was seen: {shown}")
