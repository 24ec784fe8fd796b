"""A ready stream as a timeline's params: arrivals, test sets, orders of tasks, and what it takes on disk."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML

from tasks import randomness
from tasks.errors import UserError
from tasks.params import Prepared
from tasks.params import parse as parse_params
from tasks.prepare.demand import RATE
from tasks.prepare.registry import parse
from tasks.prepare.source import Note, unheard
from tasks.prepare.sources.fomo import sequence
from tasks.storage import hub
from tasks.stream import pins
from tasks.stream.cut import groups
from tasks.stream.manifest import VALIDATION_SHARE, ReadySet, StreamManifest
from tasks.text import one_line
from tasks.units import duration, size

NUMBERED = ("hf", "images")
"""Kinds of sources whose classes have the numbers of a manifest; those of others come with names of their own."""
JPEG_BYTES_A_PIXEL = 27_600 / 224**2
"""Of photographs at quality 95 (benchmarks/prepared.py)."""


@dataclass(frozen=True)
class Wanted:
    """How a ready stream is to be run."""

    data: Path | None = None
    """A folder with the sets; by default they come from their first source."""
    experts: bool = False
    """Experts of others arrive, where there are some; else data do."""
    evaluate_on: Literal["test", "validation"] = "test"
    """Test parts, or the samples held out of the training parts."""
    orders: int = 1
    """Orders of the tasks: the first is the manifest's, and each other one is drawn by its number."""
    timeline: str | None = None
    prepared: str = "raw"
    kind: str | None = None
    """The kind of source that is preferred, such as ``torchvision``."""
    sequence: Path | None = None
    """A class sequence of FoMo-in-Flux, which is cut into ``steps`` time steps; else each set is one."""
    steps: int = 0
    note: Note = unheard
    info: Path | None = None
    """The folder of a benchmark's annotations, where it is not beside the data."""


def source(one: ReadySet, manifest: StreamManifest, data: Path | None, kind: str | None = None) -> str:
    """Where a set comes from, in the short form without a part: of some kind, where the set has a source of it.

    Raises:
        UserError: it cannot be had automatically; says whom to ask.
    """
    if data is not None:
        where = _template(manifest, str(data), kind)
        return where.replace("{data}", str(data)).replace("{name}", one.name)
    if not one.sources:
        raise UserError(f"{one.name}: {one.missing} (licence: {one.licence}); give a folder with it: --data FOLDER")
    return next((text for text in one.sources if text.partition(":")[0] == kind), one.sources[0])


def _template(manifest: StreamManifest, data: str, kind: str | None) -> str:
    """The source of sets at a place of the user's: a folder, or archives.

    Raises:
        UserError: the place is a hub, and the stream has no kind of source for that.
    """
    archives = manifest.archives
    if archives is not None and (hub.is_address(data) or kind == archives.partition(":")[0]):
        return archives
    if hub.is_address(data):
        raise UserError(f"--data {data}: {manifest.stream} reads folders; its sets have addresses of their own")
    return manifest.folder


def spec(one: ReadySet, where: str, part: str, share: str | None = None, info: Path | None = None) -> dict[str, Any]:
    """A source in the mapping form, with the settings of the set that its kind takes.

    Raises:
        UserError: the source is of no known kind.
    """
    made = parse(f"{where}#{part}", f"stream: {one.name}")
    accepted = type(made).model_fields
    settings = {"source": made.name, **made.model_dump(mode="json", exclude_defaults=True)}
    more: dict[str, Any] = {"licence": one.licence}
    if one.classes and made.name in NUMBERED:
        more["classes"] = list(one.classes)
    if one.templates:
        more["template"] = one.templates[0]
    if one.pairs:
        more["pairs"] = True
    more |= {"label": one.label, "share": share, "info": None if info is None else str(info)}
    return settings | {key: value for key, value in more.items() if value is not None and key in accepted}


def shares(one: ReadySet) -> tuple[str, str]:
    """The shares of a training part that are trained on, and held out for validation."""
    total, held = one.counts.train, one.validation
    kept = 100 * (1 - (held / total if total and held else VALIDATION_SHARE))
    return f"[:{kept:.4g}%]", f"[{kept:.4g}%:]"


def order(names: Sequence[str], number: int) -> list[str]:
    """The tasks in their order number 0, which is the manifest's, or in one that is drawn by its number."""
    if number == 0:
        return list(names)
    return [names[i] for i in randomness.generator(number, "task order").permutation(len(names))]


def params_of(manifest: StreamManifest, wanted: Wanted) -> dict[str, Any]:
    """The content of a params.yaml.

    Raises:
        UserError: a set cannot be had, or has no expert.
    """
    if wanted.sequence is not None:
        streams = [_of_sequence(wanted.sequence, manifest, wanted)]
    else:
        arriving = {one.name: _arrival(one, manifest, wanted) for one in manifest.of_role("adaptation")}
        streams = [[arriving[name] for name in order(list(arriving), number)] for number in range(wanted.orders)]
    tests: dict[str, list[dict[str, Any]]] = {
        role: [test(one, manifest, wanted) for one in manifest.of_role(role)] for role in ("adaptation", "retention")
    }
    steps = manifest.steps_of.get(len(streams[0]), manifest.train.get("steps"))
    content: dict[str, Any] = {
        "timeline": wanted.timeline or manifest.stream,
        "base": manifest.base.model_dump(mode="json", exclude_defaults=True),
        "stream": streams[0],
        "time": manifest.time,
        "train": {**manifest.train, **({"steps": steps} if steps else {})},
        "evaluate": tests,
        "grid": dict(manifest.grid),
    }
    if wanted.prepared != "raw":
        content["prepared"] = wanted.prepared
    if wanted.orders > 1:
        content["grid"]["variants"] = {
            f"order-{number + 1}": {"stream": stream} for number, stream in enumerate(streams)
        }
    return content


def _of_sequence(path: Path, manifest: StreamManifest, wanted: Wanted) -> list[dict[str, Any]]:
    """One arrival for each run of classes, with sources that read these classes alone."""
    pairs = sequence(path)
    known = {one.name: one for one in manifest.of_role("adaptation")}
    if unknown := sorted({data_set for data_set, _ in pairs if data_set not in known}):
        raise UserError(f"{path}: {manifest.stream} has no adaptation set {', '.join(unknown)}")
    if left_out := [name for name in known if name not in {data_set for data_set, _ in pairs}]:
        wanted.note(f"{path.name} names no class of {len(left_out)} adaptation sets: {', '.join(left_out)}")
    stream = []
    for number, group in enumerate(groups(range(len(pairs)), wanted.steps), start=1):
        of_set: dict[str, list[str]] = {}
        for i in group:
            of_set.setdefault(pairs[i][0], []).append(pairs[i][1])
        update = [
            {
                **spec(known[name], source(known[name], manifest, wanted.data, wanted.kind), "train", info=wanted.info),
                "only": classes,
            }
            for name, classes in of_set.items()
        ]
        stream.append({"name": f"{path.stem}-{number:03d}", "update": update})
    return stream


def _arrival(one: ReadySet, manifest: StreamManifest, wanted: Wanted) -> dict[str, Any]:
    if wanted.experts:
        if one.expert is None:
            raise UserError(f"{one.name}: the manifest has no expert for it; leave --experts out to train one")
        return {"name": one.name, "expert": one.expert}
    return {
        "name": one.name,
        "update": [
            spec(one, source(one, manifest, wanted.data, wanted.kind), "train", shares(one)[0], info=wanted.info)
        ],
    }


def test(one: ReadySet, manifest: StreamManifest, wanted: Wanted) -> dict[str, Any]:
    where = source(one, manifest, wanted.data, wanted.kind)
    held_out = wanted.evaluate_on == "validation" and one.role == "adaptation"
    part, share = ("train", shares(one)[1]) if held_out else ("test", None)
    made = spec(one, where, part, share, wanted.info)
    prompt = {} if one.pairs or not one.templates else {"prompt": _prompt(one)}
    return {"name": one.name, "test": [made], **prompt}


def _prompt(one: ReadySet) -> str | list[str]:
    return one.templates[0] if len(one.templates) == 1 else list(one.templates)


@dataclass(frozen=True)
class Size:
    """What a ready stream takes."""

    samples: int
    """Counted ones."""
    uncounted: tuple[str, ...]
    """Sets of which a count is not known."""
    prepared: int
    """Bytes of prepared images."""


def size_of(manifest: StreamManifest, image_size: int, prepared: Prepared, *, experts: bool) -> Size:
    """Samples and bytes of prepared images at an image size; experts that arrive leave out training samples."""
    samples, uncounted = 0, []
    for one in manifest.sets:
        trained = one.role == "adaptation" and not experts
        counts = one.counted(trained=trained)
        samples += sum(count or 0 for count in counts)
        if None in counts:
            uncounted.append(one.name)
    each = 3.0 if prepared.form == "raw" else JPEG_BYTES_A_PIXEL
    return Size(samples, tuple(uncounted), math.ceil(samples * each * image_size**2))


def text(manifest: StreamManifest, wanted: Wanted, project: Path) -> str:
    """The params.yaml, which is valid as a whole; addresses of hubs are at the commit that they are at now.

    Raises:
        UserError: as `params_of`, or it is not valid with what was asked for; names the key.
    """
    writer: Any = YAML(typ="safe")
    writer.default_flow_style = None  # leaves on one line
    writer.sort_base_mapping_type_on_output = False
    writer.width = 4096
    written = io.StringIO()
    made = params_of(manifest, wanted)
    if unpinned := pins.pin(made, project):
        wanted.note(f"no hub answers for {', '.join(unpinned)}: which commit is meant is settled by the first run")
    writer.dump(made, written)
    head = f"# {one_line(manifest.about)}: streams/{manifest.stream}.yaml, by chronomerge stream import.\n"
    content = head + written.getvalue()
    parse_params(content, Path(f"{manifest.stream} as params"))
    return content


def costs(manifest: StreamManifest, wanted: Wanted, project: Path, image_size: int) -> list[str]:
    """What running it will download and store, in sentences; what is not known is named.

    Raises:
        UserError: a set cannot be had, or a hub refuses access.
    """
    from tasks.stream.copies import bytes_to_download

    stored = size_of(manifest, image_size, Prepared(form=wanted.prepared), experts=wanted.experts)  # type: ignore[arg-type]
    lines = [
        f"samples: {stored.samples:,}"
        + (f", and those of {', '.join(stored.uncounted)}, which are not counted" if stored.uncounted else "")
    ]
    each = bytes_to_download(manifest, wanted, project)
    known = sum(size for size in each.values() if size is not None)
    unknown = [name for name, size in each.items() if size is None]
    lines.append(
        f"to download: {size(known)}, {duration(known * 8 / RATE)} at {RATE / 1e6:.0f} Mbit/s"
        + (f", and {len(unknown)} sets of unknown size ({', '.join(unknown)})" if unknown else "")
    )
    lines.append(
        f"on disk: {size(stored.prepared)} prepared at {image_size} pixels ({wanted.prepared}), and the sets' files;"
        " both in the cache, and once more in the store"
    )
    return lines
