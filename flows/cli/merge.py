"""``chronomerge merge`` and ``chronomerge techniques``: merging checkpoints by hand, without a timeline."""

from __future__ import annotations

import json
import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli import terminal
from flows.cli.options import OnMismatch
from tasks.errors import UserError
from tasks.progress import Progress, silent
from tasks.text import one_line


class OnMissing(StrEnum):
    """What to do where most of the base's tensors are missing from the experts."""

    error = "error"
    keep = "keep"


def merge(
    technique: Annotated[
        str | None, typer.Option("--technique", "-t", help="See `chronomerge techniques`; file.py:Class for your own.")
    ] = None,
    expert: Annotated[
        list[str] | None,
        typer.Option("--expert", "-e", metavar="FILE[:WEIGHT]", help="A model to merge; once for each, in order."),
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", "-b", help="The base model, which task vectors are relative to.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="A safetensors file, NAME.safetensors.index.json for shards, or a new folder: with the base's "
            "configuration and tokenizer, and a model card.",
        ),
    ] = None,
    statistics: Annotated[
        list[Path] | None,
        typer.Option(
            "--statistics",
            metavar="FILE",
            help="What an expert's own data says, of `chronomerge measure`; once for each expert, in their order.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the technique; repeatable.")
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            metavar="PATTERN:KEY=VALUE",
            help="A setting of a part: --part visual:density=0.5, --part '*.mlp.*:scale=[0.2,0.8]' (over the layers), "
            "--part 'text:weights=[1,3]' (one a model); repeatable.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A mergekit YAML, in place of technique, base and experts.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the output: float32, bfloat16, float16 or float64 [the base's].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of techniques that drop at random.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="[all cores this process may use]")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; a GPU needs the extra gpu (CuPy).")] = "cpu",
    shard_size: Annotated[float, typer.Option(help="Gigabytes of a shard, where --out is an index.")] = 5.0,
    on_missing: Annotated[
        OnMissing, typer.Option(help="When the models share less than half of the base's parameters.")
    ] = OnMissing.error,
    on_mismatch: Annotated[
        OnMismatch, typer.Option(help="When a tensor has another shape than the base's: refuse, or take the base's.")
    ] = OnMismatch.error,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove files of an earlier model that a loader could mix up with this.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all that the headers tell; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Merge checkpoints of one architecture in flat memory; any safetensors will do."""
    from tasks.convert import RECIPE, merge_into, recipe
    from tasks.merge import Report, mergekit
    from tasks.merge import merge as run

    if out is None and not dry_run:
        raise UserError("say where the merged model goes: --out merged.safetensors (or --dry-run)")
    is_file = out is None or out.name.endswith((".safetensors", ".index.json"))
    if out is not None and not is_file and out.suffix in (".pt", ".bin", ".pth", ".ckpt", ".json"):
        raise UserError(f"--out {out}: give a .safetensors file, NAME.safetensors.index.json for shards, or a folder")
    if not 0 < shard_size < math.inf:
        raise UserError(f"--shard-size is in gigabytes and more than 0, got {shard_size:g}")
    warnings: tuple[str, ...] = ()
    if config is not None:
        if technique or expert or base or statistics or settings or part:
            raise UserError(
                "--config says what to merge and how; leave out --technique, --base, --expert, --statistics, --set and "
                "--part"
            )
        read = mergekit.load(config)
        arguments: dict[str, Any] = {
            "technique": read.technique,
            "experts": read.experts,
            "base": read.base,
            "settings": read.settings,
            "weights": read.weights,
            "part_weights": read.part_weights,
        }
        dtype, warnings = dtype or read.dtype, read.warnings
    elif technique is None or not expert:
        raise UserError("say what to merge: --technique NAME and one or more --expert FILE (or --config FILE)")
    else:
        files, weights = _experts(expert)
        chosen = parse_settings(settings or [])
        own, part_weights = parse_parts(part or [])
        if own and "parts" in chosen:
            raise UserError("parts are given both by --set parts and by --part; keep one")
        arguments = {
            "technique": technique,
            "experts": files,
            "base": base,
            "settings": {**chosen, "parts": own} if own else chosen,
            "weights": weights,
            "statistics": statistics,
            "part_weights": part_weights,
        }
    arguments |= {
        "dtype": dtype,
        "seed": seed,
        "threads": threads,
        "device": device,
        "shard_bytes": int(shard_size * 1e9),
        "overwrite": overwrite,
        "on_missing": on_missing.value,
        "on_mismatch": on_mismatch.value,
        "dry_run": dry_run,
        "metadata": {RECIPE: json.dumps(recipe(arguments | {"dtype": dtype, "seed": seed}))},
        "progress": _bar(),
    }
    notes: list[str] = []
    if out is not None and not is_file:
        done, notes = merge_into(out, **arguments)
        report: Report = done.report
    else:
        report = run(**arguments, out=out).report
    for warning in warnings:
        terminal.errors.print(f"warning: {warning}")
    if as_json:
        terminal.print_json(report.as_json())
        return
    verb = "would merge" if dry_run else "merged"
    terminal.out.print(
        f"{verb} {report.experts} model{'s' * (report.experts != 1)} with {report.technique}: "
        f"{report.merged} tensor{'s' * (report.merged != 1)}, "
        f"{report.parameters:,} parameters" + (f" into {out}" if out else "")
    )
    if dry_run:
        terminal.out.print(f"  settings: {_settings(report.settings)}")
        terminal.out.print(f"  reads {report.read_bytes / 1e6:,.1f} MB a pass")
    for line in [*report.summary(), *notes]:
        terminal.out.print(f"  {line}")


def techniques(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a table for a document.")] = False,
) -> None:
    """List the merging techniques: settings and their defaults, what each needs, and its source."""
    from tasks.merge import available

    rows = [_describe(technique) for technique in available().values()]
    if as_json:
        terminal.print_json(rows)
        return
    if markdown:
        terminal.out.print(_table(rows))
        return
    for row in rows:
        terminal.out.print(row["name"], style="bold")
        terminal.out.print(f"  {row['formula']}")
        terminal.out.print(f"  settings: {_settings(row['settings'])}")
        terminal.out.print(f"  needs: {', '.join(row['needs'])}")
        terminal.out.print(f"  source: {row['source']}")


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """``["density=0.2", "lines.alpha=0.5"]`` → nested settings; values are JSON where they can be, else text.

    Raises:
        UserError: one is no KEY=VALUE.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set takes KEY=VALUE, got {pair!r}")
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = text
        *outer, last = key.split(".")
        place = settings
        for part in outer:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise UserError(f"--set {key}: {part} is set to a value already")
        place[last] = value
    return settings


def parse_parts(pairs: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]]]:
    """``["visual:density=0.5"]`` → settings by pattern, and the models' weights (``weights=[1,3]``) by pattern.

    Raises:
        UserError: one is no PATTERN:KEY=VALUE, its value no number or list of numbers, or it is given twice.
    """
    settings: dict[str, dict[str, Any]] = {}
    weights: dict[str, list[float]] = {}
    for pair in pairs:
        head, equals, text = pair.partition("=")
        pattern, colon, key = head.rpartition(":")
        if not equals or not colon or not pattern or not key:
            raise UserError(f"--part takes PATTERN:KEY=VALUE, such as visual:density=0.5; got {pair!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers):
            raise UserError(f"--part {head}: {text!r} is no number, nor a list of numbers such as [0.2,0.8]")
        place: dict[str, Any] = weights if key == "weights" else settings.setdefault(pattern, {})
        name = pattern if key == "weights" else key
        if name in place:
            raise UserError(f"--part {head} is given twice; keep one")
        place[name] = numbers if key == "weights" else value
    return settings, weights


def _experts(given: list[str]) -> tuple[list[Path], list[float] | None]:
    files: list[Path] = []
    weights: list[float | None] = []
    for text in given:
        file, weight = text, None
        head, colon, tail = text.rpartition(":")
        if colon and not Path(text).exists():
            try:
                file, weight = head, float(tail)
            except ValueError:  # a colon in a name, or a typing error
                if Path(head).exists():
                    raise UserError(f"--expert {text}: the weight {tail!r} is not a number") from None
        files.append(Path(file))
        weights.append(weight)
    if all(weight is None for weight in weights):
        return files, None
    missing = [str(file) for file, weight in zip(files, weights, strict=True) if weight is None]
    if missing:
        raise UserError(f"weights for some experts only: give {missing[0]} one as well (FILE:WEIGHT), or none to any")
    return files, [weight for weight in weights if weight is not None]


def _describe(technique: Any) -> dict[str, Any]:
    fewest, most = technique.models
    count = f"exactly {fewest} models" if fewest == most else "any number of models"
    needs = [count]
    default = technique()
    if default.needs_base:
        needs.append("the base")
    if technique.statistics:
        needs.append(f"statistics of each expert's data ({', '.join(technique.statistics)})")
    if default.sequential:
        needs.append("a running state for deploy: all (one expert a time step)")
    return {
        "name": technique.name,
        "formula": (technique.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " "),
        "settings": default.model_dump(mode="json"),
        "needs": needs,
        "sequential": default.sequential,
        "source": technique.source,
    }


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())


def _table(rows: list[dict[str, Any]]) -> str:
    """Markdown; without LiNeS, which every technique takes."""
    lines = ["| technique | formula | settings | needs | running state | source |", "|---|---|---|---|---|---|"]
    for row in rows:
        settings = _settings({key: value for key, value in row["settings"].items() if key != "lines"})
        needs = ", ".join(n for n in row["needs"] if n == "the base" or n.startswith(("exactly", "statistics")))
        cells = [f"`{row['name']}`", row["formula"], f"`{settings}`" if settings else "", needs]
        cells += ["yes" if row["sequential"] else "", row["source"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _bar() -> Progress:
    """A percentage on a terminal; nothing where there is none: a merge takes seconds."""
    if not sys.stderr.isatty():
        return silent
    shown = -1

    def show(what: str, done: int, total: int, note: str = "") -> None:
        nonlocal shown
        percent = 100 * done // max(total, 1)
        if percent != shown:
            shown = percent
            typer.echo(f"\r{one_line(what)} {percent:3}% {one_line(note)}", nl=percent == 100, err=True)

    return show
