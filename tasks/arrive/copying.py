"""What arrives, copied to one place and checked there, in full."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks import layout
from tasks.arrive import drops, known, s3, samples
from tasks.arrive.request import LocatedSource, Request, located
from tasks.arrive.s3 import UnreachableError
from tasks.arrive.verdict import Findings, few
from tasks.errors import UnavailableError, UserError
from tasks.model import jpeg, models, origins
from tasks.params import Arrival, Params, SourceSpec
from tasks.prepare import experts, files
from tasks.prepare.photographs import Photographs
from tasks.prepare.registry import written
from tasks.prepare.source import Context, Outside, Reading, Source
from tasks.progress import Progress, silent
from tasks.storage import hub
from tasks.storage.cache import Entry, hash_of
from tasks.text import redacted

Memo = dict[str, dict[bytes, str]]
"""What calls for one project share: the test images, by what they were made of."""


@dataclass(frozen=True)
class Copy:
    """An arrival whose files have been copied and checked."""

    arrival: Arrival
    folder: Path | None
    """The files to keep; None where the arrival has none, but names what anybody can have."""
    about: Mapping[str, Any]
    """What the pointer to them says."""

    @cached_property
    def entry(self) -> Entry | None:
        return hash_of(self.folder) if self.folder else None


@dataclass(frozen=True)
class Copying:
    """One request on its way: what it is for, where it is put together, and what is found out."""

    project: Path
    params: Params
    request: Request
    scratch: Path
    progress: Progress
    memo: Memo
    findings: Findings = field(default_factory=Findings)

    def run(self) -> Copy | None:
        """The copy, or None where something is wrong with it.

        Raises:
            UserError: the project's base or test sets cannot be had.
            UnreachableError: S3 does not give the files.
        """
        folder, about = self.scratch / "kept" / self.request.name, {"arrived": _now(), "from": self._given}
        arrival = self._expert(folder) if self.request.expert else self._data(folder)
        if self.findings.problems or arrival is None:
            return None
        if classes := self.findings.facts.get("classes"):
            about["classes"] = list(classes)
        return Copy(arrival, folder if folder.exists() else None, about)

    @property
    def _given(self) -> list[str]:
        return [redacted(str(one)) for one in self.request.data or [self.request.expert]]

    @property
    def _path(self) -> str:
        """Where the project is to have the files."""
        return f"{layout.ARRIVALS}/{self.request.name}"

    def _model(self) -> Path:
        """The timeline's model folder: that of state 0, or as params.yaml names the model."""
        folder = self.scratch / layout.HISTORY / "model"
        if not known.place_model(self.project, self.params, folder):
            models.resolve(self.params.base, self.project, folder)
            models.fetch_tokenizer(self.params.base, self.project, folder)
        return folder

    def _expert(self, folder: Path) -> Arrival | None:
        from tasks.arrive import weights

        address, how = str(self.request.expert), self.request.on_mismatch
        model = self._model()
        base = weights.base(self.project, self.params, model, self.scratch)
        against = experts.Against(self.params.base, base.weights, base.names)
        with self._complaining():
            here, of_hub = self._brought(address)
            with self._complaining(lambda text: text.replace(here, address)):
                given = Arrival(name=self.request.name, expert=here, on_mismatch=how)
                needs_base = experts.fetch(given, folder, self.project, against, self.progress)
                if of_hub:
                    experts.write_origin(of_hub, folder)
                if self.request.from_others:
                    self._tell_left_out(Path(here))
                whole = self.scratch / experts.FILE
                if needs_base and base.weights is None:
                    self.findings.note(weights.by_shapes_alone(base))
                else:
                    for note in experts.convert(given, folder, base.weights if needs_base else None, model, whole):
                        self.findings.note(note)
                    weights.check(self.request.name, whole, base, self.findings, self.progress)
                return Arrival(
                    name=self.request.name, expert=f"{self._path}/{experts.raw(folder).name}", on_mismatch=how
                )
        return None

    def _brought(self, address: str) -> tuple[str, Mapping[str, Any] | None]:
        """Where an expert is, and what it was on a hub: a copy of it, where it is in S3 or somebody else's."""
        limits, target = self.params.limits, self.scratch / "download"
        if address.startswith(s3.SCHEME):
            bounds = limits if self.request.from_others else None
            return str(s3.download(address, target, self.progress, bounds, self.request.ignored)), None
        if not self.request.from_others:
            return address, None
        if hub.is_address(address):
            return self._of_hub(address, target)
        drop = Path(str(self.request.drop))
        only = Path(address).relative_to(drop).as_posix()
        here = drops.copied(
            drop, target, limits, self.findings.complain, self.progress, only=only if only != "." else None,
            ignored=self.request.ignored,
        )  # fmt: skip
        return str(here), None

    def _of_hub(self, address: str, target: Path) -> tuple[str, Mapping[str, Any]]:
        """A copy of what somebody else names on a hub: as anybody has it, without the user's token and cache."""
        total = 0

        def within(name: str, size: int) -> None:
            nonlocal total
            total += size
            drops.require_within(self.params.limits, total, size, f"{address}/{name}", address)

        try:
            expert = origins.located(address, progress=self.progress, public=target / "cache", allowed=within)
        except UnavailableError as error:
            raise UnreachableError(str(error)) from None
        assert expert.pin is not None
        here = target / "repository"
        for name in expert.pin.files:
            files.copy(expert.root / name, here / name)
        only = hub.parse(address).file
        return str(here / only if only else here), {"address": address, **expert.pin.as_dict()}

    def _tell_left_out(self, here: Path) -> None:
        """Note which files of a drop are no part of the model in it."""
        if not here.is_dir():
            return
        used = set(origins.files_of(origins.entries(here), str(here), pickles=True))
        if left := sorted({path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()} - used):
            self.findings.note(f"left out: {len(left)} file{'s'[: len(left) > 1]} that no model has ({few(left)})")

    def _data(self, folder: Path) -> Arrival | None:
        how = models.preprocess(self._model())
        params, downloads = self.params, layout.private(self.project) / "downloads"
        outside = Outside(
            self.project, downloads, params.seed, self.progress, limits=params.limits, inside=self.request.from_others
        )  # fmt: skip
        context = Context(
            params.seed, how.image_size, how.interpolation, how.resize_mode == "squash", self.scratch,
            limits=params.limits,
            jpeg=jpeg.chosen(params.prepared, how.interpolation, squash=how.resize_mode == "squash"),
        )  # fmt: skip
        copied: list[tuple[LocatedSource, Path]] = []
        readings: list[tuple[Source, Reading]] = []
        for number, given in enumerate(self.request.data):
            with self._complaining():
                downloads = self.scratch / f"download-{number}"
                source = located(
                    given, self.request, self.project, downloads, self.progress, self.params.limits,
                    self.findings.complain,
                )  # fmt: skip
                raw = self.scratch / f"raw-{number}" / source.source.name
                raw.mkdir(parents=True)
                with self._complaining(source.shown):
                    complain, note = self._complain(source.shown), self._note(source.shown)
                    source.source.fetch(raw, replace(outside, complain=complain, note=note))
                    hearing = replace(context, complain=complain, note=note)
                    readings.append((source.source, source.source.read(raw, hearing)))
                copied.append((source, raw))
        samples.check(self.request.name, readings, self._tests(), self.findings, self.progress, context.jpeg)
        self._compare(replace(outside, progress=silent), context)
        if self.findings.problems:
            return None
        return Arrival(name=self.request.name, update=self._moved(copied, folder))

    def _moved(self, copied: list[tuple[LocatedSource, Path]], folder: Path) -> list[SourceSpec]:
        """The sources that read what was copied, from where the project is to have it."""
        specs: list[SourceSpec] = []
        for number, (source, raw) in enumerate(copied, start=1):
            if isinstance(source.source, Photographs):
                own = f"/{number}" if len(copied) > 1 else ""
                specs.append(written(source.source.moved(raw, Path(f"{folder}{own}"), f"{self._path}{own}")))
            else:
                specs.append(source.given)
        return specs

    def _tests(self) -> Mapping[bytes, str]:
        subject = self.params.model_dump_json(include={"seed", "base", "evaluate"})
        if subject not in self.memo:
            self.memo[subject] = known.test_images(self.project, self.params, self.scratch, self.progress)
        return self.memo[subject]

    def _compare(self, outside: Outside, context: Context) -> None:
        """Note which classes other arrivals have too."""
        names = self.findings.facts["classes"]
        shared = {
            name: both
            for name, its in known.classes(self.project, self.params, outside, context)
            if name != self.request.name and (both := its.intersection(names))
        }
        if shared:
            classes, others = sorted(set().union(*shared.values())), [repr(name) for name in shared]
            self.findings.note(
                f"{len(classes)} of its {len(names)} classes arrive with {few(others)} too: {few(classes)}"
            )

    @contextmanager
    def _complaining(self, shown: Callable[[str], str] = str) -> Iterator[None]:
        """What is wrong with an arrival is a finding; that nobody can tell is not."""
        try:
            yield
        except (UnreachableError, UnavailableError):
            raise
        except UserError as error:
            self.findings.complain(shown(str(error)))
        except (PermissionError, FileNotFoundError) as error:
            self.findings.complain(shown(f"{error.filename}: {error.strerror}"))

    def _note(self, shown: Callable[[str], str]) -> Callable[[str], None]:
        return lambda note: self.findings.note(shown(note))

    def _complain(self, shown: Callable[[str], str]) -> Callable[[str], None]:
        return lambda problem: self.findings.complain(shown(problem))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
