"""One arrival, from whatever a person or a drop names to a line in the stream, or to a report that says why not.

Its files are copied first, and the copy is checked, kept and pointed to: what becomes of the original meanwhile
matters no more. The order is the one that states are recorded in: the cache has every byte, then the store, then there
is a pointer, and the line in params.yaml comes last and makes it an arrival. A crash before that leaves none (and at
most files that nothing refers to), and the same call again finishes or finds that all is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tasks import layout
from tasks.arrive import known, stream_file
from tasks.arrive.copying import Copy, Copying, Memo
from tasks.arrive.request import Request
from tasks.arrive.verdict import Findings, Verdict, quotable, write_report
from tasks.errors import UserError
from tasks.params import Arrival, Params, load
from tasks.prepare.registry import parse_all
from tasks.progress import Progress, silent
from tasks.storage import atomic, dvc_config, locks, pointers, store
from tasks.storage.cache import Cache, Entry, hash_of


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
    memo: Memo | None = None,
) -> Verdict:
    """Check what arrives in full and, unless something is wrong with it, keep its files and append it to the stream.

    A refusal is a verdict too, and is written down in ``.chronomerge/refused``. With ``dry_run`` nothing is changed.
    With ``once``, what has the very files of another arrival of the stream is that arrival, and there already; and what
    was withdrawn from the timeline is refused.
    ``unchanged`` is asked when all is copied and checked; ``memo`` keeps the test images from one call to the next.

    Raises:
        UserError: the request makes no sense, or the project itself is wrong (its params, base, test sets or store).
        UnreachableError: S3 does not give the files.
        ChangedError: ``unchanged`` says that they are not.
        RemoteError: the store does not take them. As after a crash, the same call may be tried again.
    """
    request.require_sense()
    params = load(project / "params.yaml")
    with atomic.private_folder(layout.private(project) / "arriving") as home:
        copying = Copying(project, params, request, home, progress, {} if memo is None else memo)
        copy, findings = copying.run(), copying.findings
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
    verdict = Verdict(name, "refused", tuple(map(quotable, problems)), (), {})
    return verdict if dry_run else replace(verdict, report=write_report(project, verdict))


def _decide(
    project: Path, params: Params, request: Request, copy: Copy | None, findings: Findings, *, once: bool
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
    if name not in there and (out := known.withdrawn(project, entry, params, name)):
        said = f"{out[0]!r} was withdrawn ({out[1]} recorded it)"
        if once:
            findings.complain(f"{said}; `chronomerge arrive` takes it anyway")
        else:
            findings.note(f"{said}, and arrives again")
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
    project: Path, request: Request, copy: Copy, findings: Findings, progress: Progress, *, once: bool
) -> Verdict:
    """Keep the files and append the arrival, unless somebody was first."""
    file = (project / "params.yaml").resolve()
    pointer = pointers.path(project, request.name)
    with locks.using(project, wait=True), pointers.one_at_a_time(project):
        params = load(file)
        verdict = _decide(project, params, request, copy, findings, once=once)
        if verdict.outcome != "would arrive":
            return verdict
        text = stream_file.appended(file.read_text(encoding="utf-8"), copy.arrival, file)  # before anything is written
        if copy.folder:
            progress(f"keeping {request.name}", 0, 1)
            with store.open_store(project, params.store.remote) as remote:
                entry = pointers.keep(project, copy.folder, remote)
            pointers.write(pointer, entry, copy.about)
            progress(f"keeping {request.name}", 1, 1)
        pointers.replace(file, text)
        if copy.folder:
            pointers.place(project, pointer, Cache(dvc_config.cache_dir(project)))
    return replace(verdict, outcome="arrived")
