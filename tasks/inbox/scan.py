"""One look through an inbox: what is finished and new arrives or is refused, and is left where it lies.

Exactly once, whatever is killed: a drop counts as taken when its line is in the stream. Killed before that, nothing has
arrived, and the next scan takes it. Killed after it, before the drop's note, the next scan finds its files in the
stream, under whatever name the drop has by now.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from tasks import arrive as arriving
from tasks.arrive import CHECKPOINTS, ChangedError, Memo, Request, UnreachableError, Verdict
from tasks.errors import ReadableError, UserError, first_problem
from tasks.inbox import notes, places
from tasks.inbox.notes import DropNote
from tasks.inbox.places import MANIFEST, MARKERS, Inbox
from tasks.model.origins import ADAPTER, TORCH_NAMES
from tasks.model.sources import INDEX, SINGLE
from tasks.params import Limits, load
from tasks.progress import Progress, silent
from tasks.storage import dvc, hub, store
from tasks.text import printable


@dataclass(frozen=True)
class Drop:
    """One drop, and what there is to say of it."""

    name: str
    why: str
    verdict: Verdict | None = None
    """Of a drop that was looked into just now."""

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "why": self.why, "verdict": self.verdict.as_dict() if self.verdict else None}


@dataclass(frozen=True)
class Scan:
    """What one look through an inbox came to; a drop is in one list."""

    where: str
    taken: list[Drop] = field(default_factory=list)
    """In the stream now, and never reported as taken before."""
    refused: list[Drop] = field(default_factory=list)
    """Refused just now."""
    waiting: list[Drop] = field(default_factory=list)
    """Not finished, or could not be read to its end: the next scan looks again."""
    changed: list[Drop] = field(default_factory=list)
    """Taken before, and of other content now; not taken again."""
    known: list[Drop] = field(default_factory=list)
    """Taken before, or refused before, and the same since; or the files of an arrival under another name."""

    def sort(self) -> None:
        """Order each list by name."""
        for drops in (self.taken, self.refused, self.waiting, self.changed, self.known):
            drops.sort(key=lambda one: one.name)

    def as_dict(self) -> dict[str, Any]:
        kinds = ("taken", "refused", "waiting", "changed", "known")
        return {"where": self.where, **{kind: [one.as_dict() for one in getattr(self, kind)] for kind in kinds}}


class _Manifest(BaseModel):
    """``arrival.yaml`` of a drop; what else it says are settings of the source that reads the data."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str | None = None
    """Of the arrival; by default the drop's."""
    expert: str | None = None
    """The checkpoint among the drop's files, a folder in it (``.``: the drop itself), or an ``hf:`` address."""
    prompt: str | None = None
    """Caption where there is none, with ``{}`` for the class."""


def scan(project: Path, where: str, progress: Progress = silent, *, dry_run: bool = False) -> Scan:
    """Look through the inbox at ``where``, a folder or ``s3://BUCKET/PREFIX``, once; nothing in it is ever changed.

    With ``dry_run`` drops are checked, and nothing is changed in the project either.

    Raises:
        UserError: there is no such inbox, or the project itself is wrong (params, base, test sets, store).
        UnreachableError: S3 does not answer.
        RemoteError: the store does not take the files. What was taken before that stays so.
    """
    with notes.one_at_a_time(project), contextlib.ExitStack() as stack:
        place = places.place(where, project)
        look = _Look(project, place, progress, dry_run, Scan(place.where))
        fresh = list(look.fresh())
        if fresh and not dry_run:  # opened once for all of them
            stack.enter_context(store.open_store(project, load(project / "params.yaml").store.remote))
            stack.enter_context(dvc.reused(project))
        for name, signature in fresh:
            look.take(name, signature)
    look.found.sort()
    return look.found


@dataclass(frozen=True)
class _Look:
    """One look through an inbox, on its way."""

    project: Path
    place: Inbox
    progress: Progress
    dry_run: bool
    found: Scan
    memo: Memo = field(default_factory=dict)

    def fresh(self) -> Iterator[tuple[str, str]]:
        """The drops that are to be looked into, with their signatures; all others are put where they belong."""
        for name in self.place.drops():
            try:
                name.encode()
                signature = self.place.signature(name)
            except UnicodeEncodeError:
                self._wait(printable(name), "its name is not UTF-8; rename it")
                continue
            except OSError as error:
                self._wait(name, f"{error.filename}: {error.strerror}")
                continue
            if signature is None or not self.place.finished(name):
                self._wait(name, f"has neither {' nor '.join(MARKERS)}: not finished")
                continue
            note = notes.read(self.project, self.place.where, name)
            if note and note.signature != signature:
                try:
                    note = self._seen_again(note, signature)
                except _UNREADABLE as error:
                    self._wait(name, f"{error.filename}: {error.strerror}")
                    continue
            if note is None:
                yield name, signature
            elif note.changed:
                why = f"was taken as {note.arrival!r}, and has other content since; drop it anew"
                self.found.changed.append(Drop(name, why))
            elif note.outcome == "taken":
                out = (
                    ", and withdrawn since; `chronomerge arrive` takes it anyway"
                    if note.arrival in self._withdrawn
                    else ""
                )
                self.found.known.append(Drop(name, f"was taken as {note.arrival!r}{out}"))
            else:
                self.found.known.append(Drop(name, f"was refused, and is the same since; see {note.report}"))

    @cached_property
    def _withdrawn(self) -> dict[str, str]:
        return arriving.withdrawals(self.project, load(self.project / "params.yaml"))

    def _seen_again(self, note: DropNote, signature: str) -> DropNote | None:
        """The note on a drop that looks different; None where that is to be looked into."""
        changed = self.place.content(note.drop) != note.content
        if changed and note.outcome == "refused":
            return None
        note = note.model_copy(update={"signature": signature, "changed": changed})
        if not self.dry_run:
            notes.write(self.project, note)
        return note

    def take(self, name: str, signature: str) -> None:
        """Let one drop arrive, and note what became of it."""
        content = ""
        try:
            content = self.place.content(name)
            verdict = self._verdict(name, signature)
        except (UnreachableError, ChangedError) as error:
            self._wait(name, str(error))
            return
        except _UNREADABLE as error:
            self._wait(name, f"{error.filename}: {error.strerror}")
            return
        except ReadableError:
            raise  # the project's own fault, or the store's
        except OSError as error:
            if error.errno in _OF_THE_MACHINE:
                raise
            verdict = self._unexpected(name, error)
        except Exception as error:  # whatever it is, it is one drop's, and the others must not wait for it
            verdict = self._unexpected(name, error)
        arrival = str(verdict.arrival["name"]) if verdict.arrival else verdict.name
        if verdict.refused:
            self.found.refused.append(Drop(name, f"refused: {verdict.problems[0]}", verdict))
        elif arrival != verdict.name:
            self.found.known.append(Drop(name, f"has the very files of {arrival!r}", verdict))
        else:
            self.found.taken.append(Drop(name, f"taken as {arrival!r}, step {verdict.step}", verdict))
        if not self.dry_run:
            notes.write(self.project, DropNote(
                place=self.place.where, drop=name, signature=signature, content=content,
                outcome="refused" if verdict.refused else "taken", arrival=arrival, report=verdict.report,
            ))  # fmt: skip

    def _verdict(self, name: str, signature: str) -> Verdict:
        try:
            request = _request(self.place, name, load(self.project / "params.yaml").limits)
        except UnreachableError:
            raise
        except UserError as error:
            return arriving.refusal(self.project, name, [str(error)], dry_run=self.dry_run)
        return arriving.arrive(
            self.project, request, self.progress, dry_run=self.dry_run, once=True, memo=self.memo,
            unchanged=lambda: self.place.still(name, signature),
        )  # fmt: skip

    def _unexpected(self, name: str, error: Exception) -> Verdict:
        """The refusal of a drop that brings up an error which nobody has thought of."""
        problem = f"{self.place.address(name)}: cannot be taken: {type(error).__name__}: {error}"
        return arriving.refusal(self.project, name, [problem], dry_run=self.dry_run)

    def _wait(self, name: str, why: str) -> None:
        self.found.waiting.append(Drop(name, why))


_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS}
"""Errors that say nothing of a drop: a disk is full, files run out."""
_UNREADABLE = (PermissionError, FileNotFoundError)
"""What a drop's own files can raise: they may be readable by the next look."""
_OF_A_MODEL = (*SINGLE, INDEX, *TORCH_NAMES, ADAPTER[0])
"""The files of which each makes the folder that has it a model's."""


def _request(place: Inbox, name: str, limits: Limits) -> Request:
    """What a drop asks for.

    Raises:
        UserError: its manifest is wrong, or its name can be no arrival's.
    """
    said = _manifest(place, name, limits)
    files = [file for file in place.names(name) if file not in MARKERS]
    settings = dict(said.__pydantic_extra__ or {})
    address = place.address(name)
    expert = said.expert if said.expert is not None else None if settings or said.prompt else _model_in(files)
    if expert is not None:
        if settings or said.prompt:
            raise UserError(f"{address}/{MANIFEST}: an expert takes no {next(iter([*settings, 'prompt']))}")
        file = _expert(expert, files, address)
        request = Request(said.name or name, expert=file, drop=address, ignored=MARKERS)
    else:
        if "path" in settings:
            raise UserError(f"{address}/{MANIFEST}: path: the data are the drop's files, wherever it lies")
        template = {"template": said.prompt} if said.prompt is not None else {}
        original = str(settings.get("drawn_as") or "")
        if original.startswith("/") or ".." in PurePosixPath(original).parts:
            raise UserError(f"{address}/{MANIFEST}: drawn_as: {original!r} leads out of the drop")
        request = Request(
            said.name or name, (address,), settings={**settings, **template}, where=f"{address}/{MANIFEST}",
            drop=address, ignored=MARKERS,
        )  # fmt: skip
    request.require_sense()
    return request


def _model_in(files: list[str]) -> str | None:
    """What a drop without a word on it brings as an expert: its only file, or itself where it is a model's folder."""
    if len(files) == 1 and Path(files[0]).suffix.lower() in CHECKPOINTS:
        return files[0]
    return "." if any(name in files for name in _OF_A_MODEL) else None


def _expert(expert: str, files: list[str], address: str) -> str:
    """The address of the expert that a manifest names.

    Raises:
        UserError: it is not in the drop; or it is on a hub, and the drop has files.
    """
    if hub.is_address(expert):
        hub.parse(expert)
        if files:
            raise UserError(
                f"{address}/{MANIFEST}: expert: {expert!r} is on a hub, and the drop has files ({files[0]}); "
                "drop one of the two"
            )
        return expert
    if expert.endswith(INDEX):  # with the shards beside it
        expert = PurePosixPath(expert).parent.as_posix()
    whole = expert.removesuffix("/")
    if whole == "." and files:
        return address
    if whole not in files and not any(name.startswith(f"{whole}/") for name in files):
        raise UserError(f"{address}/{MANIFEST}: expert: {expert!r} is none of the drop's files")
    return f"{address}/{whole}"


def _manifest(place: Inbox, name: str, limits: Limits) -> _Manifest:
    text = place.manifest(name)
    where = f"{place.address(name)}/{MANIFEST}"
    try:
        _require_small(text or "{}", where, limits)
        content = YAML(typ="safe").load(text or "{}")
        return _Manifest.model_validate({} if content is None else content)
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error, 'it')}") from None
    except (YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{where}: not a YAML file: {' '.join(str(error).split())}") from None


def _require_small(text: str, where: str, limits: Limits) -> None:
    """Look at a YAML text without building anything of it.

    Raises:
        UserError: it is nested too deep, or has too many aliases, which a few bytes can make many of.
    """
    depth = aliases = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        aliases += isinstance(event, AliasEvent)
        if depth > limits.yaml_depth:
            raise UserError(f"{where}: is nested deeper than {limits.yaml_depth} levels (limits.yaml_depth)")
        if aliases > limits.yaml_aliases:
            raise UserError(f"{where}: has more than {limits.yaml_aliases} aliases (limits.yaml_aliases)")
