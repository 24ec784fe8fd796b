"""``chronomerge stream``: cut data sets into a stream of time steps, in an order of choice."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import terminal
from flows.cli.merge import parse_settings
from tasks.errors import UserError

if TYPE_CHECKING:
    from tasks.params import Params

app = typer.Typer(help="Cut data sets into a stream of time steps, in an order of choice.", no_args_is_help=True)


@app.command()
def cut(
    steps: Annotated[int, typer.Option("--steps", "-T", min=1, help="Time steps to cut the classes into.")],
    order: Annotated[str, typer.Option(help="See `chronomerge stream orders`.")],
    data: Annotated[
        Path | None,
        typer.Argument(help="A YAML list of data sets {name, update, date}; by default the stream of params.yaml."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the order; repeatable.")
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of random choices [that of params.yaml].")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The base's weights, for orders that ask it [those of params.yaml].")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The stream file [printed].")] = None,
) -> None:
    """Deal the classes of some data sets out to time steps, and write the stream for params.yaml."""
    from tasks import console, layout, progress
    from tasks.params import load
    from tasks.prepare.source import Context, Outside
    from tasks.storage import atomic, places
    from tasks.storage.git import top_level
    from tasks.stream import cut as cutting
    from tasks.stream import material, ordering

    if out is not None:
        places.output(out)
    project = top_level(Path.cwd())
    params = load(project / "params.yaml")
    chosen = ordering.named(order, parse_settings(settings or []))
    data_sets = cutting.read(data or project / "params.yaml")
    private = layout.make_private(project)
    with tempfile.TemporaryDirectory(dir=private, prefix="stream-") as folder, console.shown() as listener:
        progress.listen(listener)
        model = material.resolved(params.base, project, Path(folder) / "model")
        seed = params.seed if seed is None else seed
        gathered = material.gather(
            data_sets,
            params.base.pretraining,
            lambda: material.base(model, params.base, project, weights or _trained(project, params)),
            Outside(project, private / "downloads", seed, progress.report),
            Context(seed, model.preprocess.image_size, model.preprocess.interpolation,
                    model.preprocess.resize_mode == "squash", Path(folder)),
        )  # fmt: skip
        indices = chosen.order(gathered)
    if reverse:
        indices.reverse()
    name = order + ("-reversed" if reverse else "")
    stream = cutting.arrivals(gathered.pairs, indices, steps, name)
    shown = " ".join(f"--set {pair}" for pair in settings or [])
    remarks = [
        f"{len(gathered.pairs)} classes of {len(data_sets)} data sets, cut into {steps} time steps by",
        f"chronomerge stream cut {data or ''} --steps {steps} --order {order} {shown} --seed {seed}"
        + (" --reverse" if reverse else ""),
    ]
    content = cutting.text(stream, [" ".join(remark.split()) for remark in remarks])
    if out is None:
        terminal.out.print(content, end="")
    else:
        atomic.write(out, content)
        terminal.out.print(
            f"{out}: {len(gathered.pairs)} classes in {steps} time steps; put its stream: into params.yaml"
        )


@app.command()
def orders() -> None:
    """List the orders there are, their settings, and their sources."""
    from tasks.stream import ordering

    for one in ordering.known().values():
        terminal.out.print(one.name, style="bold")
        terminal.out.print(f"  {' '.join((one.__doc__ or '').split())}")
        terminal.out.print(f"  settings: {', '.join(one.model_fields) or 'none'}; source: {one.source}")


@app.command(name="import")
def import_(
    name: Annotated[str, typer.Argument(help="A ready stream (vision8, vision14, vision20, fomo-in-flux), or a file.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder that has the sets, or (FoMo-in-Flux) a repository with its archives, hf:ORG/NAME; by "
            "default each set comes from its first source."
        ),
    ] = None,
    info: Annotated[
        Path | None, typer.Option(help="The folder of FoMo-in-Flux's annotation files [00_info beside the sets].")
    ] = None,
    source: Annotated[str | None, typer.Option(help="The kind of source to prefer, such as torchvision.")] = None,
    experts: Annotated[
        bool, typer.Option("--experts", help="Let others' experts arrive, at the addresses of the stream.")
    ] = False,
    orders: Annotated[int, typer.Option(min=1, help="Orders of the tasks, as variants of the grid.")] = 1,
    validation: Annotated[
        bool, typer.Option("--validation", help="Test on the samples held out of the training parts.")
    ] = False,
    sequence: Annotated[
        Path | None, typer.Option(help="A class sequence of FoMo-in-Flux (dataset+++class), cut into --steps.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", "-T", min=0, help="Time steps that a sequence is cut into.")] = 0,
    timeline: Annotated[str | None, typer.Option(help="Name of the timeline [that of the stream].")] = None,
    prepared: Annotated[str, typer.Option(help="How images are stored: raw or jpeg.")] = "raw",
    image_size: Annotated[int, typer.Option(min=1, help="The model's image size, for the estimate of disk.")] = 224,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The params file, which must be new [printed].")
    ] = None,
) -> None:
    """Write the params.yaml of a ready stream, and say what it will download and store, and how long it takes."""
    from tasks import layout
    from tasks.params import parse
    from tasks.storage import atomic
    from tasks.storage.git import top_level
    from tasks.stream import manifest, pace, ready

    project = top_level(Path.cwd())
    ready_stream = manifest.read(name, project)
    if (sequence is None) != (steps == 0):
        raise UserError("--sequence FILE and --steps T go together: the sequence is cut into T time steps")
    if out is not None and out.exists():
        raise UserError(f"{out}: exists; remove it, or name another file")
    wanted = ready.Wanted(
        data, experts, "validation" if validation else "test", orders, timeline, prepared, source, sequence, steps,
        note=lambda note: terminal.errors.print(f"note: {note}"), info=info,
    )  # fmt: skip
    content = ready.text(ready_stream, wanted, project)
    for line in ready.costs(ready_stream, wanted, project, image_size):
        terminal.errors.print(line)
    params = parse(content, Path(f"{name} as params"))
    terminal.errors.print(f"time: measuring a few batches of {params.base.model} on this machine …")
    private = layout.make_private(project)
    with tempfile.TemporaryDirectory(dir=private, prefix="pace-") as scratch:
        measured = pace.measured(params, project, Path(scratch))
    terminal.errors.print(str(pace.forecast(measured, pace.work(ready_stream, params))))
    if out is None:
        terminal.out.print(content, end="")
    else:
        atomic.write(out, content)
        terminal.errors.print(f"{out}: {ready_stream.about}; next: chronomerge data check {name}, chronomerge run")


@app.command(name="list")
def list_() -> None:
    """List the ready streams of this project."""
    from tasks.storage.git import top_level
    from tasks.stream import manifest

    project = top_level(Path.cwd())
    for name in manifest.names(project):
        ready_stream = manifest.read(name, project)
        arriving, others = (len(ready_stream.of_role(role)) for role in ("adaptation", "retention"))
        terminal.out.print(f"{name}: {ready_stream.about}; {arriving} sets arrive, {others} are only tested on")


def _trained(project: Path, params: Params) -> Path | None:
    """The weights of a base that the timeline trains itself; None where params.yaml names given ones.

    Raises:
        UserError: it is not trained yet, or its weights are not on this machine.
    """
    from tasks import layout, record
    from tasks.storage import dvc_config
    from tasks.storage.cache import Cache

    if params.base.pretrained != "train":
        return None
    recorded = record.states(project, params.timeline)
    if not recorded:
        raise UserError("this order asks the base, which is not trained yet: first `chronomerge run --until 0`")
    path = Cache(dvc_config.cache_dir(project)).path(recorded[0].entries[layout.EXPERT].md5)
    if not path.exists():
        raise UserError("this order asks the base, whose weights are not here: first `chronomerge restore 0`")
    return path
