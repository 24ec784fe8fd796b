"""Whether a copy of a ready stream's set is the right one: its samples, its classes, and its zero-shot score."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import layout, prepare
from tasks.errors import UserError
from tasks.params import Base, Params
from tasks.prepare.hosted import Hosted
from tasks.prepare.photographs import Photographs
from tasks.prepare.registry import parse, written
from tasks.prepare.source import Context, Outside
from tasks.progress import Progress, silent
from tasks.stream import ready
from tasks.stream.manifest import ReadySet, StreamManifest
from tasks.stream.ready import Wanted

TOLERANCE = 1.0
"""Points by which a score may differ: other resizing, other encodings of the same images, and another precision."""


@dataclass(frozen=True)
class CopyProperty:
    """One property of a copy."""

    name: str
    """Of the set."""
    what: str
    expected: float | None
    """None where no source says it."""
    found: float | None
    """None where it could not be looked at; then ``problem`` says why."""
    problem: str = ""
    at: str = ""
    """The source that was looked at, at the commit of a hub."""

    @property
    def agrees(self) -> bool | None:
        """None where there is nothing to compare."""
        if self.expected is None or self.found is None:
            return None
        return abs(self.expected - self.found) <= (TOLERANCE if self.what == "score" else 0)


def check(
    manifest: StreamManifest,
    sets: Sequence[ReadySet],
    wanted: Wanted,
    project: Path,
    scratch: Path,
    base: Base | None = None,
    progress: Progress = silent,
) -> Iterator[CopyProperty]:
    """What is found of some sets, each brought whole; with ``base`` also its zero-shot score on the test part.

    A set that cannot be had is one finding, and the others are still looked at. ``scratch`` keeps downloads.

    Raises:
        UserError: the base cannot be had.
    """
    scores = _Scores(base, project, scratch, progress) if base else None
    for one in sets:
        try:
            where = ready.source(one, manifest, wanted.data, wanted.kind)
            classes: set[str] = set()
            for part in ("train", "test") if one.role == "adaptation" else ("test",):
                source = _at_commit(ready.spec(one, where, part, info=wanted.info), project)
                at = f"{source.name}:{source.path}"
                count, names = _look(source, one.name, project, scratch, progress)
                classes |= names
                yield CopyProperty(one.name, f"{part} samples", getattr(one.counts, part), count, at=at)
            if not one.pairs:
                yield CopyProperty(one.name, "classes", one.number_of_classes, len(classes), at=at)
            if scores:
                test = {**ready.test(one, manifest, wanted), "test": [written(source)]}
                yield CopyProperty(one.name, "score", one.score, scores.of(test), at=at)
        except UserError as error:
            yield CopyProperty(one.name, "copy", None, None, str(error))


def _at_commit(spec: dict[str, Any], project: Path) -> Any:
    """A source at the commit that its repository is at now."""
    source = parse(spec, spec["path"])
    return source.pinned(project) if isinstance(source, Hosted) else source


def _look(source: Any, name: str, project: Path, scratch: Path, progress: Progress) -> tuple[int, set[str]]:
    outside = Outside(project, scratch / "downloads", 0, progress)
    context = Context(0, 1, "bicubic", squash=False, scratch=scratch)
    with prepare.looked_into([written(source)], f"data check: {name}", outside, context) as readings:
        return sum(reading.count for _, reading in readings), {c for _, reading in readings for c in reading.classes}


class _Scores:
    """Zero-shot scores of one base."""

    def __init__(self, base: Base, project: Path, scratch: Path, progress: Progress):
        from tasks.model import models

        self._base, self._project, self._scratch, self._progress = base, project, scratch, progress
        models.resolve(base, project, scratch / "model")
        models.fetch_base(base, project, scratch)
        models.fetch_tokenizer(base, project, scratch / "model", scratch)

    def of(self, test: dict[str, Any]) -> float:
        """The score of a test set, as params.yaml has it: top-1, or the mean recall@5 of both ways, in percent."""
        from tasks.evaluate import node
        from tasks.evaluate.metrics import of_recall, percent
        from tasks.model.datasets import Dataset
        from tasks.prepare.node import prepare_evaluation

        sets = {"adaptation": [test], "retention": [{**test, "name": f"{test['name']}-again"}]}
        params = Params.model_validate({
            "timeline": "data-check", "base": self._base.model_dump(exclude_defaults=True), "stream": [],
            "train": {"steps": 1}, "evaluate": sets,
        })  # fmt: skip
        once = params.evaluate.model_copy(update={"retention": []})
        params = params.model_copy(update={"evaluate": once})
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            home = Path(folder)
            (home / node.MODEL).parent.mkdir(parents=True)
            (home / node.MODEL).symlink_to((self._scratch / "model").absolute())
            (home / node.DEPLOYED).parent.mkdir(parents=True)
            (home / node.DEPLOYED).symlink_to((self._scratch / "base.safetensors").absolute())
            downloads = self._scratch / "downloads"
            prepare.fetch_evaluation(params, home / layout.RAW_EVALUATION, downloads, self._progress, self._project)
            prepare_evaluation(home, params, self._progress)
            (one,) = params.evaluate.sets
            scores = node.measure(home, params, [one], self._progress)
            if one.name in scores.recall:
                return of_recall(scores.recall[one.name])
            return percent(scores.nearest[one.name][:, 0] == Dataset(home / node.SETS / one.name).labels)


def bytes_to_download(manifest: StreamManifest, wanted: Wanted, project: Path) -> dict[str, int | None]:
    """For each set what its files on a hub weigh; 0 for a folder, None where nobody says.

    Raises:
        UserError: a set cannot be had, or the hub refuses access.
    """
    counts: dict[str, int | None] = {}
    for one in manifest.sets:
        where = ready.source(one, manifest, wanted.data, wanted.kind)
        parts = ("train", "test") if one.role == "adaptation" and not wanted.experts else ("test",)
        files: dict[str, int] | None = {}
        for part in parts:
            sizes = _sizes(parse(ready.spec(one, where, part, info=wanted.info), one.name), project)
            files = None if files is None or sizes is None else files | sizes
        counts[one.name] = None if files is None else sum(files.values())
    return counts


def _sizes(source: Any, project: Path) -> dict[str, int] | None:
    """The files of a hub that a source reads, with their bytes; None where nobody says."""
    from tasks.errors import UnavailableError

    if isinstance(source, Photographs):
        return {}
    if not isinstance(source, Hosted):
        return None
    try:
        place = source.place(project)
        chosen = source.choose(place, Outside(project, project, 0, silent))
        return {name: place.sizes.get(name, 0) for name in chosen.files} if source.address(project) else {}
    except UnavailableError:
        return None
