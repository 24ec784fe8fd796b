"""``chronomerge heads``: the files of heads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import AsJson
from flows.cli.terminal import out as terminal
from flows.cli.terminal import print_json

app = typer.Typer(help="Heads: classifiers on a model's features, computed from labelled images.", no_args_is_help=True)


@app.command()
def remove(
    head: Annotated[Path, typer.Argument(metavar="HEAD", help="The file of a head, NAME.safetensors.")],
    classes: Annotated[list[str], typer.Argument(metavar="CLASS...", help="Classes that it is to know no longer.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file of the head without them; may be HEAD.")],
    as_json: AsJson = False,
) -> None:
    """Take classes out of a head, from its file alone: without any image.

    Of a number of shots the result is exact. Of shots: all, counts and sums are, and a covariance is an estimate.
    """
    from tasks.evaluate import headfile
    from tasks.storage import places

    places.output(out)
    note = headfile.remove(head, classes, out)
    if as_json:
        print_json({"file": str(out), **note.model_dump(mode="json")})
        return
    terminal.print(f"{out}: head {note.name} of {len(note.classes)} classes")
    if note.estimated:
        terminal.print(
            f"of {', '.join(note.estimated)} it kept sums alone: counts and means are exact, the covariance is an"
            " estimate; with `without` in evaluate.heads the next step computes it from the images"
        )


@app.command()
def merge(
    a: Annotated[Path, typer.Argument(metavar="A", help="The file of a head, NAME.safetensors.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, of the same head on the same model's features.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file of the head of both; may be A or B.")],
    as_json: AsJson = False,
) -> None:
    """Add two heads: the one of all samples of both, from counts and sums, without any image.

    Heads of several machines merge this way, two at a time and in any order.
    """
    from tasks.evaluate import headfile
    from tasks.storage import places

    places.output(out)
    note = headfile.merge(a, b, out)
    if as_json:
        print_json({"file": str(out), **note.model_dump(mode="json")})
    else:
        terminal.print(f"{out}: head {note.name} of {len(note.classes)} classes")
