"""One arrival, from whatever a person or a drop names to a line in the stream, or to a report that says why not.

Its files are copied first, and the copy is checked, kept and pointed to: what becomes of the original meanwhile
matters no more. The order is the one that states are recorded in: the cache has every byte, then the store, then there
is a pointer, and the line in params.yaml comes last and makes it an arrival. A crash before that leaves none (and at
most files that nothing refers to), and the same call again finishes or finds that all is done.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tasks import models
from tasks.arrive import known, s3, samples, stream_file
from tasks.arrive.request import Request, located
from tasks.arrive.s3 import UnreachableError
from tasks.arrive.verdict import Findings, Verdict, few, write_report
from tasks.cache import Cache, Entry, hash_of
from tasks.errors import UserError, redacted
from tasks.params import Arrival, Params, SourceSpec, load
from tasks.prepare import experts
from tasks.prepare.photographs import Photographs
from tasks.prepare.registry import parse_all, written
from tasks.prepare.source import Context, Outside
from tasks.progress import Progress, silent
from tasks.record import config, layout, lock, pointers, store


@dataclass(frozen=True)
class _Copy:
    """An arrival whose files have been copied and checked."""

    arrival: Arrival
    folder: Path | None
    """The files to keep; None where the arrival has none, but names what anybody can have."""
    about: Mapping[str, Any]
    """What the pointer to them says."""

    @property
    def entry(self) -> Entry | None:
        return hash_of(self.folder) if self.folder else None


class ChangedError(UserError):
    """Files changed while they were copied: what was checked may be neither what was there nor what is."""


def arrive(
    project: Path,
    request: Request,
    progress: Progress = silent,
    *,
    dry_run: bool = False,
    once: bool = False,
    unchanged: Callable[[], bool] = lambda: True,
) -> Verdict:
    """Check what arrives in full and, unless something is wrong with it, keep its files and append it to the stream.

    A refusal is a verdict too, and is written down in ``.chronomerge/refused``. With ``dry_run`` nothing is changed.
    With ``once``, what has the very files of another arrival of the stream is that arrival, and there already.
    ``unchanged`` is asked when all is copied and checked.

    Raises:
        UserError: the request makes no sense, or the project itself is wrong (its params, base, test sets or store).
        UnreachableError: S3 does not give the files.
        ChangedError: ``unchanged`` says that they are not.
        RemoteError: the store does not take them. As after a crash, the same call may be tried again.
    """
    request.require_sense()
    params = load(project / "params.yaml")
    findings = Findings()
    with _scratch(project) as scratch:
        made = _expert if request.expert else _data
        copy = made(project, params, request, scratch, findings, progress)
        if not unchanged():
            raise ChangedError(f"{request.name}: its files changed while they were copied")
        verdict = _decide(project, params, request, copy, findings, once=once)
        if dry_run:
            return verdict
        if verdict.outcome == "would arrive" and copy:
            verdict = _commit(project, request, copy, findings, progress, once=once)
    if verdict.refused:
        verdict = replace(verdict, report=write_report(project, verdict))
    return verdict


def refusal(project: Path, name: str, problems: list[str], *, dry_run: bool = False) -> Verdict:
    """The verdict on something that is no request at all, such as a manifest that cannot be read."""
    verdict = Verdict(name, "refused", tuple(redacted(problem) for problem in problems), (), {})
    return verdict if dry_run else replace(verdict, report=write_report(project, verdict))


@contextmanager
def _scratch(project: Path) -> Iterator[Path]:
    """A folder on the project's file system; what killed processes have left of theirs goes."""
    home = layout.private(project) / "arriving"
    home.mkdir(parents=True, exist_ok=True)
    for left in home.iterdir():
        if not psutil.pid_exists(int(left.name.partition("-")[0])):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=f"{os.getpid()}-") as folder:
        yield Path(folder)


def _data(
    project: Path, params: Params, request: Request, scratch: Path, findings: Findings, progress: Progress
) -> _Copy | None:
    """Copy and check data; None where not even its sources can be told."""
    model = scratch / layout.HISTORY / "model"
    models.resolve(params.base, project, model)
    how = models.preprocess(model)
    outside = Outside(project, layout.private(project) / "downloads", params.seed, progress)
    context = Context(params.seed, how.image_size, how.interpolation, how.resize_mode == "squash", scratch)
    sources, raws, readings = [], [], []
    for number, given in enumerate(request.data):
        with _complaining(findings):
            found = located(given, request.settings, project, scratch / f"download-{number}", progress)
            complain = _shown(findings, found.shown)
            raw = scratch / f"raw-{number}" / found.source.kind
            raw.mkdir(parents=True)
            with _complaining(findings, found.shown):
                found.source.fetch(raw, replace(outside, complain=complain))
                readings.append((found.source, found.source.read(raw, replace(context, complain=complain))))
            sources.append(found)
            raws.append(raw)
    tests = known.test_images(project, params, scratch, progress)
    samples.check(request.name, readings, tests, findings, progress)
    names = findings.facts["classes"]
    earlier = [one for one in params.stream if one.name != request.name]
    for name, its in known.classes(project, params, earlier, outside, context):
        if both := sorted(its.intersection(names)):
            findings.note(f"{len(both)} of its {len(names)} classes arrive with {name!r} too: {few(both)}")
    if findings.problems:
        return None
    folder, path = scratch / "kept" / request.name, f"{layout.ARRIVALS}/{request.name}"
    specs: list[SourceSpec] = []
    for number, (one, raw) in enumerate(zip(sources, raws, strict=True), start=1):
        if isinstance(one.source, Photographs):
            own = f"/{number}" if len(sources) > 1 else ""
            specs.append(written(one.source.moved(raw, Path(f"{folder}{own}"), f"{path}{own}")))
        else:
            specs.append(one.given)
    arrival = Arrival(name=request.name, update=specs)
    about = _about(request.data, {"samples": findings.facts["samples"], "classes": list(names)})
    return _Copy(arrival, folder if folder.exists() else None, about)


def _expert(
    project: Path, params: Params, request: Request, scratch: Path, findings: Findings, progress: Progress
) -> _Copy | None:
    """Copy and check an expert; None where it is no checkpoint."""
    from tasks.arrive import weights

    assert request.expert
    model = scratch / "model"
    models.resolve(params.base, project, model)
    base = weights.base(project, params, model, scratch)
    folder = scratch / "kept" / request.name
    target = folder / experts.FILE
    address = request.expert
    with _complaining(findings):
        remote = address.startswith(s3.SCHEME)
        here = str(s3.download(address, scratch / "download", progress)) if remote else address
        with _complaining(findings, lambda text: text.replace(here, address)):
            experts.fetch(here, target, project, progress)
            weights.check(request.name, target, base, findings, progress)
    if findings.problems:
        return None
    arrival = Arrival(name=request.name, expert=f"{layout.ARRIVALS}/{request.name}/{experts.FILE}")
    return _Copy(arrival, folder, _about([request.expert], {}))


def _about(given: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"arrived": now, "from": [redacted(str(one)) for one in given], **facts}


@contextmanager
def _complaining(findings: Findings, shown: Callable[[str], str] = str) -> Iterator[None]:
    """What is wrong with an arrival is a finding; that nobody can tell is not."""
    try:
        yield
    except UnreachableError:
        raise
    except UserError as error:
        findings.complain(shown(str(error)))
    except (PermissionError, FileNotFoundError) as error:
        findings.complain(shown(f"{error.filename}: {error.strerror}"))


def _shown(findings: Findings, shown: Callable[[str], str]) -> Callable[[str], None]:
    return lambda problem: findings.complain(shown(problem))


def _decide(
    project: Path, params: Params, request: Request, copy: _Copy | None, findings: Findings, *, once: bool
) -> Verdict:
    """What is to become of it, as things stand."""
    if copy is None or findings.problems:
        return Verdict(request.name, "refused", tuple(findings.problems), tuple(findings.notes), findings.facts)
    name, entry, kept = request.name, copy.entry, None
    there = {one.name: (step, one) for step, one in enumerate(params.stream, start=1)}
    if entry:
        findings.facts["bytes"] = entry.size
        kept = pointers.path(project, name)
        twin = known.twin(project, entry, params, name)
        if twin:
            findings.note(f"its files are the very same as those of {twin!r}")
        if twin and once:
            name = twin
        elif name not in there and kept.with_suffix("").exists() and hash_of(kept.with_suffix("")).md5 != entry.md5:
            shown = kept.with_suffix("").relative_to(project)
            findings.complain(f"{shown} is there with other files; move them away, or name this arrival otherwise")
    if name == request.name and name in there and not _is(project, there[name][1], copy.arrival, entry):
        lost = "" if not kept or kept.exists() else f" ({kept.relative_to(project)} is missing: `git checkout` it)"
        findings.complain(f"the stream has another arrival {name!r} already{lost}; name this one otherwise")
    if findings.problems:
        return _decide(project, params, request, None, findings, once=once)
    step, arrival = there.get(name, (len(params.stream) + 1, copy.arrival))
    return Verdict(
        request.name, "already there" if name in there else "would arrive", (), tuple(findings.notes), findings.facts,
        arrival.model_dump(mode="json", exclude_defaults=True), step,
        pointers.path(project, name).relative_to(project).as_posix() if kept else None,
    )  # fmt: skip


def _is(project: Path, one: Arrival, other: Arrival, entry: Entry | None) -> bool:
    """Whether an arrival of the stream is another one, with these very files."""
    same = one.expert == other.expert and parse_all(one.update, "stream") == parse_all(other.update, "--data")
    pointer = pointers.path(project, one.name)
    return same and (entry is None or (pointer.exists() and pointers.read(pointer)[0].md5 == entry.md5))


def _commit(
    project: Path, request: Request, copy: _Copy, findings: Findings, progress: Progress, *, once: bool
) -> Verdict:
    """Keep the files and append the arrival, unless somebody was first."""
    file = (project / "params.yaml").resolve()
    pointer = pointers.path(project, request.name)
    with lock.present(project, wait=True), pointers.one_at_a_time(project):
        params = load(file)
        verdict = _decide(project, params, request, copy, findings, once=once)
        if verdict.outcome != "would arrive":
            return verdict
        text = stream_file.appended(file.read_text(), copy.arrival, file)  # before anything is written
        if copy.folder:
            progress(f"keeping {request.name}", 0, 1)
            with store.open_store(project, params.store.remote) as remote:
                entry = pointers.keep(project, copy.folder, remote)
            pointers.write(pointer, entry, copy.about)
            progress(f"keeping {request.name}", 1, 1)
        pointers.replace(file, text)
        if copy.folder:
            pointers.place(project, pointer, Cache(config.cache_dir(project)))
    return replace(verdict, outcome="arrived")
