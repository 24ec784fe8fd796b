"""Data preparation: what the sources in params.yaml name becomes raw files, then prepared data sets.

`check`, `fetch_arrival` and `fetch_evaluation` touch the world outside (they look, copy and download); the nodes in
`tasks.prepare.node` read only the raw files that those left. A kind of source is one file in `tasks.prepare.sources`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UnavailableError, UserError
from tasks.model import origins
from tasks.params import Arrival, Params, SourceSpec
from tasks.prepare import captured, classnames, experts, files
from tasks.prepare.hosted import Hosted
from tasks.prepare.image_source import ImageSource
from tasks.prepare.photographs import Photographs
from tasks.prepare.published import read_record
from tasks.prepare.registry import kinds, parse_all
from tasks.prepare.source import Context, Outside, Reading, Source
from tasks.progress import Progress, silent
from tasks.storage import atomic, hub

if TYPE_CHECKING:
    from tasks.prepare.overlap import Overlap

__all__ = [
    "EXPERT", "KEPT", "at_most", "check", "check_hub", "check_overlap", "demanded", "fetch_arrival", "fetch_evaluation",
    "looked_into", "notes_on", "origins_of", "pointers",
]  # fmt: skip

KEPT = "kept"
"""The folder beside raw files with the expert and the statistics of the state that they are from."""
EXPERT = experts.FILE
NOTES = "notes.json"
"""Beside raw files of which there is something to note."""


def check(params: Params, project: Path = Path()) -> None:
    """Validate every source and expert that an experiment names, before any work. Relative paths start at ``project``.

    Raises:
        UserError: an unknown kind, setting, category or style, or a missing file or folder; names the key.
    """
    for where, specs in _everything(params):
        for source in parse_all(specs, where):
            source.check(project)
    for arrival in params.stream:
        if arrival.from_state:
            parse_all([*arrival.update, *arrival.measure], f"stream: arrival {arrival.name}")
        elif arrival.expert is not None:
            experts.check(arrival.expert, project)
    for one in params.evaluate.sets:
        classnames.check(one, project)


def check_hub(arrivals: Iterable[Arrival]) -> None:
    """Ask a hub whether the experts that are there can be had: repository, revision, files, access. Downloads nothing.

    Raises:
        UserError: one cannot; names the arrival.
        UnavailableError: the hub does not answer, and the cache lacks a file.
    """
    for arrival in arrivals:
        if arrival.expert is None or not hub.is_address(arrival.expert):
            continue
        try:
            origins.require_there(hub.parse(arrival.expert))
        except UserError as error:
            kind = UnavailableError if isinstance(error, UnavailableError) else UserError
            raise kind(f"stream: arrival {arrival.name}: expert {error}") from None


def demanded(
    params: Params, steps: Sequence[int], project: Path, cache: Path, progress: Progress = silent, *, tests: bool
) -> str | None:
    """What the published data sets of some steps will cost, in a sentence; None where there are none.

    ``tests``: those of the test sets too. Lists of files are looked at, on hubs too; no data is downloaded.

    Raises:
        UserError: one cannot be had, or there is too little room on the disk.
        UnavailableError: a hub does not answer, and its cache lacks a repository.
    """
    from tasks.prepare import demand

    wanted = [("base.pretraining", params.base.pretraining)] if 0 in steps else []
    arrivals = [params.stream[step - 1] for step in steps if step]
    wanted += [(f"stream: arrival {one.name}", [*one.update, *one.measure]) for one in arrivals]
    wanted += [(f"evaluate: {one.name}", one.test) for one in params.evaluate.sets if tests]
    asked = demand.demand(wanted, project, cache, progress)
    if asked is None:
        return None
    demand.require_room(asked, project)
    return str(asked)


def check_overlap(arrival: Path, evaluation: Path, params: Params, progress: Progress = silent) -> list[Overlap]:
    """Look for test images in what a step trains on, once both are prepared in these folders; see `overlap.check`.

    Raises:
        UserError: there are some, and ``evaluate.allow_overlap`` is false.
    """
    from tasks.prepare import overlap

    return overlap.check(arrival, evaluation, params, progress)


def at_most(specs: Sequence[SourceSpec], where: str, project: Path = Path()) -> int | None:
    """The largest number of samples that sources can give together, where the file system tells it; else None.

    ``where`` is what messages call their place.

    Raises:
        UserError: as `check`.
    """
    counts = [source.at_most(project) for source in parse_all(specs, where)]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def fetch_arrival(
    params: Params,
    arrival: Arrival,
    into: Path,
    cache: Path,
    progress: Progress = silent,
    project: Path = Path(),
    base: Path | None = None,
) -> None:
    """Put all that an arrival is made of into the folder ``into``: source files, or an expert as it is.

    What lies there afterwards is enough to prepare the arrival offline, and the same bytes for the same arrival. What
    a person should know of it (files left out, shares drawn) goes to ``progress``, and to `notes_on`. ``cache`` keeps
    downloads between calls, ``base`` has the base's weights. The folder is complete or, after an error, as it was
    before.

    Raises:
        UserError: something is missing, damaged or can't be downloaded.
    """
    with atomic.made_folder(into) as folder:
        if arrival.expert is not None:
            against = experts.Against(params.base, base)
            if experts.fetch(arrival, folder, project, against, progress) and base is not None:
                files.copy(base, folder / experts.BASE)
        outside = Outside(project, cache, params.seed, progress, limits=params.limits)
        sources = parse_all([*arrival.update, *arrival.measure], f"arrival {arrival.name}")
        _fetch_noting(sources, folder, outside, arrival.name)


def pointers(arrival: Arrival, project: Path) -> list[Path]:
    """The pointers that bring back what `fetch_arrival` wants to find in the project of an arrival's files."""
    sources = parse_all([*arrival.update, *arrival.measure], f"arrival {arrival.name}")
    paths = [source.path for source in sources if isinstance(source, Photographs)] + [arrival.expert or ""]
    return sorted({pointer for path in paths if (pointer := captured.pointer(project, path))})


def fetch_evaluation(
    params: Params,
    into: Path,
    cache: Path,
    progress: Progress = silent,
    project: Path = Path(),
) -> None:
    """As `fetch_arrival`, for the sources of all evaluation sets together."""
    evaluation_sets = params.evaluate.sets
    sources = [s for one in evaluation_sets for s in parse_all(one.test, f"evaluation set {one.name}")]
    with atomic.made_folder(into) as folder:
        outside = Outside(project, cache, params.seed, progress, limits=params.limits)
        _fetch_noting(sources, folder, outside, "test sets")
        for one in evaluation_sets:
            classnames.fetch(one, folder, project)


@contextmanager
def looked_into(
    specs: Sequence[SourceSpec], where: str, outside: Outside, context: Context
) -> Iterator[list[tuple[Source, Reading]]]:
    """Fetch sources into the folder ``context.scratch`` and open them for reading, until the context ends.

    ``where`` is what messages call their place.

    Raises:
        UserError: as `check` and `fetch_arrival`.
    """
    sources = list(dict.fromkeys(parse_all(specs, where)))
    with tempfile.TemporaryDirectory(dir=context.scratch) as scratch:
        raw, own = Path(scratch) / "raw", replace(context, scratch=Path(scratch))
        raw.mkdir()
        for source in sources:
            source.check(outside.project)
        _fetch(sources, raw, outside)
        yield [(source, source.read(raw / source.name, own)) for source in sources]


def _fetch(sources: Sequence[Source], folder: Path, outside: Outside) -> None:
    for source in dict.fromkeys(sources):  # several may be the same
        raw = folder / source.name
        raw.mkdir(exist_ok=True)
        source.fetch(raw, outside)


def _fetch_noting(sources: Sequence[Source], folder: Path, outside: Outside, name: str) -> None:
    """As `_fetch`, and write down what the sources note; all rows are read for it, and no image is decoded."""
    notes: dict[str, None] = {}
    _fetch(sources, folder, replace(outside, note=notes.setdefault))
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".rows-") as scratch:
        context = Context(outside.seed, 1, "bicubic", squash=False, scratch=Path(scratch), limits=outside.limits)
        context = replace(context, note=notes.setdefault)
        for source in sources:
            if isinstance(source, ImageSource):
                source.read(folder / source.name, context)
    for note in notes:
        outside.progress(f"note on {name}: {note}", 1, 1)
    if notes:
        (folder / NOTES).write_text(json.dumps(list(notes), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def notes_on(raw: Path) -> list[str]:
    """What a person should know of the data in a folder of `fetch_arrival` or `fetch_evaluation`, in sentences."""
    path = raw / NOTES
    notes: list[str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return notes


def origins_of(raw: Path) -> list[dict[str, Any]]:
    """The repositories of a hub that data in a folder of `fetch_arrival` or `fetch_evaluation` came from, with commit
    and files, as `manifest.RecordedOrigin` has them."""
    hosted = [kind for kind, source in kinds().items() if issubclass(source, Hosted)]
    records = [read_record(path) for kind in hosted for path in sorted((raw / kind).glob("*.json"))]
    return [record.origin for record in records if record.origin is not None]


def _everything(params: Params) -> Iterator[tuple[str, Sequence[SourceSpec]]]:
    yield "base.pretraining", params.base.pretraining
    for arrival in params.stream:
        if arrival.from_state:
            continue  # its files are that state's
        yield f"stream: arrival {arrival.name}", [*arrival.update, *arrival.measure]
    for one in params.evaluate.adaptation:
        yield f"evaluate.adaptation: {one.name}", one.test
    for one in params.evaluate.retention:
        yield f"evaluate.retention: {one.name}", one.test
