"""Class by class, and picture by picture: what the newest model of one timeline takes the test samples for.

Read from the predictions that states keep (`tasks.evaluate.predictions`) and the prepared test sets, out of the DVC
cache where they are there; nothing is fetched.
"""

from __future__ import annotations

import base64
import io
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tasks import layout
from tasks.errors import UserError
from tasks.model.datasets import Dataset
from tasks.randomness import derive
from tasks.report.records import Record
from tasks.storage import dvc_config
from tasks.storage.cache import Cache
from tasks.text import shortened

WORST = 10
"""Classes of a set that the page shows."""
PICTURES = 4
"""Of each kind."""
NAME = 200
"""Characters of a class's name that the page shows."""
SIDE = 96
"""Pixels: larger pictures are made smaller."""
FILES = ("dataset.json", "samples.arrow", "images.npy", "images.arrow")


@dataclass(frozen=True)
class ClassRow:
    """One class; recalls are in percent."""

    name: str
    samples: int
    recall: float
    before: float | None
    """At the base, None where its predictions are not known."""
    confusions: tuple[tuple[str, int], ...]
    """The classes that its samples are taken for most often, with the numbers of samples."""


@dataclass(frozen=True)
class Picture:
    """One test sample."""

    source: str
    """A ``data:`` address."""
    name: str
    """Its class."""
    taken_for: str
    since: int | None
    """The step since which it is not recognized, for one that was."""


@dataclass(frozen=True)
class SetReport:
    """One test set at the newest step."""

    name: str
    evaluated: int
    total: int
    top1: float
    classes: int
    worst: tuple[ClassRow, ...]
    right: tuple[Picture, ...]
    wrong: tuple[Picture, ...]
    forgotten: tuple[Picture, ...]
    forgotten_count: int
    """Samples that some earlier model took for the right class and the newest one does not."""


@dataclass(frozen=True)
class Classes:
    """What the page says of classes."""

    timeline: str = ""
    step: int = 0
    sets: tuple[SetReport, ...] = ()
    missing: str = ""
    """Why there is nothing, if that is worth saying."""


def of(project: Path, lineage: Sequence[Record]) -> Classes:
    """The classes of a timeline's newest state; ``lineage`` is its states, step 0 first.

    Raises:
        UserError: predictions in the cache are damaged or do not fit the test set.
    """
    newest, cache = lineage[-1], Cache(dvc_config.cache_dir(project))
    timeline, step = newest.state.timeline, newest.state.step
    outputs = newest.manifest.contents
    if layout.PREDICTIONS not in outputs:
        return Classes()  # a state of an older version
    if cache.missing(outputs[layout.PREDICTIONS]) or cache.missing(outputs[layout.EVALUATION]):
        restore = f"chronomerge restore {newest.state.name} --timeline {timeline}"
        return Classes(missing=f"its test sets or predictions are not in this clone's cache; `{restore}` brings them")
    earlier = [
        record
        for record in lineage[:-1]
        if layout.PREDICTIONS in record.manifest.contents
        and not cache.missing(record.manifest.contents[layout.PREDICTIONS])
        and not cache.missing(record.manifest.contents[layout.EVALUATION])
    ]
    return Classes(timeline, step, tuple(_set(cache, name, newest, earlier) for name in newest.metrics["top1"]))


def _set(cache: Cache, name: str, newest: Record, earlier: Sequence[Record]) -> SetReport:
    files = _files_of(cache, newest, name)
    before = {r.state.step: r for r in earlier if _files_of(cache, r, name) == files}
    with _opened(cache, files, newest) as data:
        now = _predicted(cache, newest, name, data)
        then = {step: _predicted(cache, record, name, data) for step, record in before.items()}
        known = now >= 0
        right = known & (now == data.labels)
        since = _since(data.labels, now, then, newest.state.step)
        forgotten = np.flatnonzero(since >= 0)
        return SetReport(
            name,
            int(known.sum()),
            len(data),
            100 * float(right.sum()) / max(1, int(known.sum())),
            len(data.card.classes),
            _worst(data, now, then.get(0)),
            _pictures(data, np.flatnonzero(right), now, since),
            _pictures(data, np.flatnonzero(known & ~right & (since < 0)), now, since),
            _pictures(data, forgotten, now, since),
            len(forgotten),
        )


def _since(labels: np.ndarray, now: np.ndarray, then: dict[int, np.ndarray], newest: int) -> np.ndarray:
    """The first step after the last one whose model was right, for each sample on which the newest model is wrong.

    -1 where the newest is right, or none ever was; int64 (N,).
    """
    since = np.full(len(labels), -1)
    steps = [*sorted(then), newest]
    for step, following in itertools.pairwise(steps):
        since[then[step] == labels] = following
    since[(now < 0) | (now == labels)] = -1
    return since


def _worst(data: Dataset, now: np.ndarray, base: np.ndarray | None) -> tuple[ClassRow, ...]:
    rows, names = [], _names(data)
    for label in np.unique(data.labels[now >= 0]):
        own = (data.labels == label) & (now >= 0)
        there = own & (base >= 0) if base is not None else None
        taken = Counter(now[own & (now != label)].tolist()).most_common(3)
        rows.append(
            ClassRow(
                names[label],
                int(own.sum()),
                100 * float((now[own] == label).mean()),
                100 * float((base[there] == label).mean())
                if base is not None and there is not None and there.any()
                else None,
                tuple((names[other], count) for other, count in taken),
            )
        )
    rows.sort(key=lambda row: (row.recall, -row.samples, row.name))
    return tuple(rows[:WORST])


def _pictures(data: Dataset, rows: np.ndarray, now: np.ndarray, since: np.ndarray) -> tuple[Picture, ...]:
    """A few of some samples, of different classes as far as there are; the same ones in every report."""
    drawn = sorted(rows.tolist(), key=lambda row: derive(0, "picture", data.ids[row]))
    seen: Counter[int] = Counter()
    turn = {}
    for row in drawn:
        turn[row] = seen[data.labels[row]]
        seen[data.labels[row]] += 1
    chosen = sorted(drawn, key=lambda row: turn[row])[:PICTURES]
    names = _names(data)
    return tuple(
        Picture(
            _encoded(data.images[row]),
            names[data.labels[row]],
            names[now[row]],
            int(since[row]) if since[row] >= 0 else None,
        )
        for row in chosen
    )


def _names(data: Dataset) -> list[str]:
    return [shortened(name, NAME) for name in data.card.classes]


def _encoded(pixels: np.ndarray) -> str:
    small = max(pixels.shape[:2]) <= SIDE
    image = Image.fromarray(np.array(pixels))
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "PNG" if small else "JPEG", optimize=True)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(content.getvalue()).decode()}"


def _files_of(cache: Cache, record: Record, name: str) -> dict[str, str]:
    """The files of a prepared test set of a state: name → md5."""
    members = cache.members(record.manifest.contents[layout.EVALUATION])
    return {file: members[f"{name}/{file}"] for file in FILES if f"{name}/{file}" in members}


@contextmanager
def _opened(cache: Cache, files: dict[str, str], record: Record) -> Iterator[Dataset]:
    """A prepared test set straight out of the cache."""
    with tempfile.TemporaryDirectory() as folder:
        for file, md5 in files.items():
            (Path(folder) / file).symlink_to(cache.path(md5).absolute())
        try:
            data = Dataset(Path(folder))
        except UserError as error:
            raise UserError(f"{record.state.tag}: a test set in the cache is damaged: {error}") from None
        yield data


def _predicted(cache: Cache, record: Record, name: str, data: Dataset) -> np.ndarray:
    """The predictions of a state on a test set, int64 (N,)."""

    def damaged(why: str) -> UserError:
        return UserError(
            f"{record.state.tag}: the predictions on {name!r} are damaged ({why}); `chronomerge doctor` says more"
        )

    members = cache.members(record.manifest.contents[layout.PREDICTIONS])
    if f"{name}.npy" not in members:
        raise damaged("there are none")
    try:
        predicted = np.load(cache.path(members[f"{name}.npy"]), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise damaged(" ".join(str(error).split())) from None
    if predicted.dtype != np.int32 or predicted.shape != (len(data),):
        raise damaged(f"{predicted.dtype} of shape {predicted.shape} for {len(data)} samples")
    if len(predicted) and not -1 <= predicted.min() <= predicted.max() < len(data.card.classes):
        raise damaged(f"a class beyond the {len(data.card.classes)} of the set")
    return predicted.astype(np.int64)
