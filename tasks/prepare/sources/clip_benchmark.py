"""``clip-benchmark``: a data set in CLIP_benchmark's WebDataset layout, a folder or a repository of a hub.

Short form ``clip-benchmark:ADDRESS#SPLIT``. ADDRESS is a folder, a repository (``hf:org/name``, ``org/wds_name``), or
CLIP_benchmark's own name of a set: ``vtab/cifar100`` is the repository ``clip-benchmark/wds_vtab-cifar100``. There are
``SPLIT/nshards.txt`` and ``SPLIT/0.tar``, ``SPLIT/1.tar``, …; ``classnames.txt`` names the classes, which samples have
as numbers (``cls``), and ``zeroshot_classification_templates.txt`` has the prompt ensemble, with ``{c}`` for the class.
Sets of images and captions (``dataset_type.txt``: retrieval) have one caption a line in ``txt``. Settings: `Hosted`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tasks.errors import UserError
from tasks.prepare import classnames, encodings, listing, tars
from tasks.prepare.hosted import FileChoice, Hosted
from tasks.prepare.image_source import Row, Rows
from tasks.prepare.places import Place, left_out, pick
from tasks.prepare.source import Context, Outside
from tasks.prepare.tars import TarMember, TarSample
from tasks.storage import hub
from tasks.storage.cards import CARD
from tasks.text import shortened

NSHARDS, CLASSES = "nshards.txt", "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
TYPE = "dataset_type.txt"
IMAGES = ("webp", "png", "jpg", "jpeg")
"""Members that are a sample's image, in CLIP_benchmark's order."""
PLACE = "{c}"
"""Of the class in its templates."""
ORGANISATION = "clip-benchmark"
MOST_SHARDS = 100_000


class ClipBenchmark(Hosted):
    """CLIP_benchmark's WebDataset layout, a folder or on a hub: ``clip-benchmark:ADDRESS#SPLIT``; names and prompts
    come with it."""

    name: ClassVar[str] = "clip-benchmark"

    def address(self, project: Path) -> hub.Address | None:
        if hub.is_address(self.path):
            address = hub.parse(self.path, "dataset")
            if address.file:
                raise UserError(f"{self.what}: names a file of a repository; write hf:ORG/NAME")
            return address
        if (project / self.path).is_dir():
            return None
        name, mark, revision = self.path.partition("@")
        repository = name if "/wds_" in name else f"{ORGANISATION}/wds_{name.replace('/', '-')}"
        if name.startswith((".", "/", "~")) or not re.fullmatch(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?", name):
            raise UserError(f"{self.what}: no such folder; or write a repository, hf:ORG/NAME")
        return hub.parse(f"hf:{repository}{mark}{revision}", "dataset")

    def place(self, project: Path) -> Place:
        try:
            return super().place(project)
        except UserError as error:
            if hub.is_address(self.path) or "no such repository" not in str(error):
                raise
            raise UserError(f"{self.what}: there is no folder {self.path}; as a name on a hub: {error}") from None

    def choose(self, place: Place, outside: Outside) -> FileChoice:
        splits = sorted(name.rpartition("/")[0] for name in place.names if re.fullmatch(rf"[^/]+/{NSHARDS}", name))
        if not splits:
            raise UserError(f"{self.what}: has no SPLIT/{NSHARDS}, so it is not in CLIP_benchmark's layout")
        split, note = pick(splits, self.split, self.what)
        kinds = [name for name in (TYPE, CLASSES, TEMPLATES) if name in place.names]
        folder = place.bring([f"{split}/{NSHARDS}", *kinds], outside.progress)
        count = self._count(folder, split)
        shards = tuple(f"{split}/{number}.tar" for number in range(count))
        if missing := [name for name in shards if name not in place.names]:
            raise UserError(
                f"{self.what}: {split}/{NSHARDS} says {count} shards, and {missing[0]} is missing; fetch it again"
            )
        kind = _text(folder / TYPE).strip().lower() if TYPE in kinds else "classification"
        if kind not in ("classification", "retrieval"):
            raise UserError(f"{self.what}: {TYPE} says {kind!r:.60}; classification and retrieval are read")
        if kind == "classification" and CLASSES not in kinds and not self.classes:
            raise UserError(f"{self.what}: {CLASSES} is missing; give the names, in order, as classes: [...]")
        beside = (f"{split}/{NSHARDS}", *kinds)
        taken = {*shards, *beside, CARD}
        notes = [note, left_out(place, taken, {one for one in splits if one != split})]
        return FileChoice(split, shards, beside, tuple(one for one in notes if one), {"kind": kind})

    def _count(self, folder: Path, split: str) -> int:
        text = _text(folder / split / NSHARDS).strip()
        if not text.isascii() or not text.isdigit() or not 0 < int(text[:12]) <= MOST_SHARDS:
            raise UserError(f"{self.what}: {split}/{NSHARDS} holds {text!r:.60}, which is no number of shards")
        return int(text)

    def rows(self, home: Path, files: Sequence[Path], context: Context) -> Rows:
        kind = self.record(home.parent).facts["kind"]
        names = self._names(home) if kind == "classification" else ()
        keys, spoken = _told_apart(names)
        left: Counter[str] = Counter()
        rows: list[Row] = []
        for path in files:
            content = tars.read(path, context.scratch, self.what, context.limits.drop_bytes)
            left.update(content.left_out)
            for sample in content.samples:
                inside = f"{path.relative_to(home).as_posix()}/{sample.key}"
                rows += self._rows_of(sample, inside, kind, keys, context, left)
        notes = [f"left out of its tar files: {_counts(left)}"] if left else []
        if len(spoken):
            twice = next(iter(spoken.values()))
            notes.append(f"{len(spoken)} classes have the name of an earlier one, such as {twice!r}")
        prompts = self._prompts(home, notes) if kind == "classification" else ()
        return Rows(rows, True, tuple(notes), keys, spoken, prompts)

    def _rows_of(
        self, sample: TarSample, inside: str, kind: str, keys: Sequence[str], context: Context, left: Counter[str]
    ) -> list[Row]:
        shown = f"{self.path}:{inside}"
        image = next((sample.members[one] for one in IMAGES if one in sample.members), None)
        wanted = "cls" if kind == "classification" else "txt"
        left.update(one for one, member in sample.members.items() if one != wanted and member is not image)
        if image is None or wanted not in sample.members:
            lacking = wanted if image is not None else f"image ({', '.join(IMAGES)})"
            context.complain(f"{shown}: has no {lacking}, only {shortened(', '.join(sample.members), 100)}")
            return []
        text = _member(sample.members[wanted])
        if text is None:
            context.complain(f"{shown}: its {wanted} is not a short text in UTF-8")
            return []
        if kind == "retrieval":
            lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
            if not lines:
                context.complain(f"{shown}: its txt holds no caption")
            return [
                Row(f"{shown}#{number}" if len(lines) > 1 else shown, inside, line, None, image.content)
                for number, line in enumerate(lines, start=1)
            ]
        number = text.strip()
        if not number.isascii() or not number.isdigit() or int(number[:12]) >= len(keys):
            context.complain(f"{shown}: its class is {number!r:.40}, and {CLASSES} names 0 to {len(keys) - 1}")
            return []
        # Shares are drawn by names that no revision of an address changes.
        return [Row(shown, inside, None, keys[int(number)], image.content)]

    def _names(self, home: Path) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers."""
        if self.classes:
            return self.classes
        return classnames.lines(_text(home / CLASSES), f"{self.what}: {CLASSES}")

    def _prompts(self, home: Path, notes: list[str]) -> tuple[str, ...]:
        """The templates that come with the data, with ``{}`` for the class."""
        if not (home / TEMPLATES).is_file():
            notes.append(f"comes without {TEMPLATES}; the prompt is {self.template!r}")
            return ()
        lines = [line for line in _text(home / TEMPLATES).splitlines() if line.strip()]
        for line in lines:
            if line.count(PLACE) != 1 or set("{}") & set(line.replace(PLACE, "")):
                raise UserError(f"{self.what}: {TEMPLATES}: {line!r:.80} must hold {PLACE} once, and no other braces")
        return tuple(line.replace(PLACE, "{}") for line in lines)


def _told_apart(names: Sequence[str]) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """A key for each class, and the names of those whose key is another: ImageNet calls several classes the same.

    Of equal names, the first sorts first, so that it is predicted, as in CLIP_benchmark's scores.
    """
    keys: list[str] = []
    spoken: dict[str, str] = {}
    for number, name in enumerate(names):
        key = name if name not in keys else f"{name} (class {number})"
        keys.append(key)
        if key != name:
            spoken[key] = name
    return tuple(keys), spoken


def _member(member: TarMember) -> str | None:
    try:
        return member.content().decode() if member.size <= tars.TEXT_BYTES else None
    except UnicodeDecodeError:
        return None


def _text(path: Path) -> str:
    """A text file that comes with the data.

    Raises:
        UserError: it is missing, or is no UTF-8.
    """
    if problem := listing.fault(path):
        raise UserError(f"{path}: {problem}")
    return encodings.read(path, str(path))


def _counts(left: Mapping[str, int]) -> str:
    ordered: list[tuple[str, Any]] = sorted(left.items(), key=lambda one: (-one[1], one[0]))
    return shortened(", ".join(f"{count} {name}" for name, count in ordered), 300)
