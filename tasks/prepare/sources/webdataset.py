"""``webdataset``: tar files of samples; members of one sample share a name: ``01.jpg``, ``01.txt``, ``01.cls``.

Short form ``webdataset:PATH``, with PATH a tar file (.tar, .tar.gz, .tgz) or a folder of them; ``#train`` and
``#test``, and settings, as in `Photographs`, and ``image``, the member that is the image: by default ``jpg``, ``jpeg``,
``png``, ``webp``, or else the only image. Captions are ``txt`` members or ``caption`` or ``text`` in a ``json`` member;
classes are ``cls`` members or ``label`` or ``class`` in a ``json`` member: names, or numbers into ``classes`` or into
the lines of a ``classnames.txt`` or ``classes.txt`` beside the tar files. Given parts are files that start with
``train`` and ``test`` (or validation, dev). Nothing is unpacked to the disk, and no member is run or unpickled.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tasks.errors import UserError
from tasks.prepare import classnames, encodings, files, listing, tables, tars
from tasks.prepare.image_source import Row, Rows
from tasks.prepare.photographs import Photographs, Selection, part_of_files
from tasks.prepare.source import Context, Outside
from tasks.prepare.tars import TarMember, TarSample
from tasks.text import shortened

PREFERRED = ("jpg", "jpeg", "png", "webp")
"""Bare extensions of a sample's image, where it has several images."""
CLASS_FILES = ("classnames.txt", "classes.txt")


class WebDataset(Photographs):
    """Tar files whose members of one name are a sample: ``webdataset:PATH``, ``webdataset:PATH#train``."""

    name: ClassVar[str] = "webdataset"
    part: ClassVar[str] = "the member (caption.txt, say) or the key of its JSON"

    image: str | None = None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return any(tars.is_tar(file) for file in (path.iterdir() if path.is_dir() else [path]))

    def find(self, path: Path) -> Selection:
        there = sorted(listing.walk(path)) if path.is_dir() else [path]
        files = [file for file in there if tars.is_tar(file) and file.parent == path] if path.is_dir() else there
        if not files:
            raise UserError(f"webdataset: {self.path}: no .tar file there")
        chosen = part_of_files(files, self)
        left = [file for file in there if file not in set(files) and file.name not in CLASS_FILES]
        return Selection(chosen.files, chosen.given, tuple(left), chosen.notes)

    def at_most_in(self, file: Path) -> int | None:
        return tars.at_most(file, f"webdataset: {self.path}")

    def fetch_more(self, home: Path, fetched: Sequence[Path], target: Path, outside: Outside) -> Collection[Path]:  # noqa: ARG002
        listed = [home / name for name in CLASS_FILES if (home / name).is_file()]
        for file in listed:
            files.copy(file, target / file.name)
        return listed

    def rows(self, home: Path, files: Sequence[Path], context: Context) -> Rows:
        what = f"webdataset: {self.path}"
        samples: list[tuple[str, TarSample]] = []
        left: list[str] = []
        for path in files:
            content = tars.read(path, context.scratch, what, context.limits.drop_bytes)
            inside = path.relative_to(home).as_posix()
            samples += [(f"{inside}/{sample.key}", sample) for sample in content.samples]
            left += content.left_out
        if not any(_images(sample) for _, sample in samples):
            members = sorted({extension for _, sample in samples for extension in sample.members})
            raise UserError(f"{what}: its samples have no images, only {shortened(', '.join(members), 200) or 'none'}")
        reader = _SampleReader(self, context, what, Counter())
        captions, labels, images = [], [], []
        for inside, sample in samples:
            captions.append(reader.text(sample, inside, self.caption, tables.CAPTION))
            labels.append(reader.text(sample, inside, self.label, tables.LABEL))
            images.append(reader.image(sample, inside))
        for wanted in (self.caption, self.label, self.image):
            if wanted is not None and not {wanted, wanted.lower()} & reader.used.keys():
                raise UserError(f"{what}: no member {wanted!r} in any sample, nor such a key in its JSON")
        names, notes = (self.classes, []) if self.classes else _listed_classes(home, labels, what)
        classes = tables.as_class_names(labels, names, f"{what}: classes")
        texts = [tables.captions_of(caption, f"{what}: captions") for caption in captions]
        rows = [
            row
            for (inside, _), several, name, image in zip(samples, texts, classes, images, strict=True)
            if image is not None
            for row in Row(
                f"{self.path}:{inside}", f"{self.drawn_as or self.path}:{inside}", None, name, image.content
            ).with_captions(several)
        ]
        return Rows(rows, notes=(*notes, *reader.notes(samples, left)))


class _SampleReader:
    """Reads members of samples, and counts which are used."""

    def __init__(self, source: WebDataset, context: Context, what: str, used: Counter[str]):
        self.source, self.context, self.what, self.used = source, context, what, used
        self._json_of = ""
        self._json: dict[str, Any] = {}

    def image(self, sample: TarSample, inside: str) -> TarMember | None:
        """The member of a sample that is its image; complains where there is none, or where several may be it."""
        there = _images(sample)
        preferred = [extension for extension in PREFERRED if extension in there]
        bare = [extension for extension in there if "." not in extension]
        if self.source.image is not None:
            chosen = [self.source.image.lower()] if self.source.image.lower() in sample.members else []
        else:
            chosen = preferred[:1] or bare or there
        if len(chosen) == 1:
            self.used[chosen[0]] += 1
            return sample.members[chosen[0]]
        shown = f"{self.source.path}:{inside}"
        if chosen:
            self.context.complain(f"{shown}: has several images ({', '.join(chosen)}); say which one with image")
        else:
            has = shortened(", ".join(sample.members), 100)
            self.context.complain(
                f"{shown}: has no image{f' {self.source.image!r}' * bool(self.source.image)}, only {has}"
                f"{listing.heic_hint(f'.{name}' for name in sample.members)}"
            )
        return None

    def text(self, sample: TarSample, inside: str, wanted: str | None, usual: Sequence[str]) -> Any:
        """A sample's caption or class: the member of that name, or else what its JSON says; None where it has none."""
        names = [wanted] if wanted is not None else usual
        own = next((name.lower() for name in names if name.lower() in sample.members), None)
        if own is not None:
            self.used[own] += 1
            content = self._decoded(sample.members[own], f"{inside}.{own}")
            return content if content and content.strip() else None
        values = self._content_of_json(sample, inside)
        name = next((name for name in names if values.get(name) is not None), None)
        if name is None:
            return None
        self.used[name] += 1
        return values[name]

    def _content_of_json(self, sample: TarSample, inside: str) -> dict[str, Any]:
        if "json" not in sample.members:
            return {}
        if self._json_of != inside:  # read once for caption and class
            text = self._decoded(sample.members["json"], f"{inside}.json") or "{}"
            self.used["json"] += 1
            try:
                content = json.loads(text)
            except (ValueError, RecursionError):
                content = None
            if not isinstance(content, dict):
                self.context.complain(f"{self.what}: {inside}.json: is no JSON of keys and values")
                content = {}
            self._json_of, self._json = inside, content
        return self._json

    def _decoded(self, member: TarMember, name: str) -> str | None:
        if member.size > tars.TEXT_BYTES:
            self.context.complain(f"{self.what}: {name}: is a text of {member.size} bytes; at most {tars.TEXT_BYTES}")
            return None
        try:
            return encodings.text(member.content(), f"{self.what}: {name}")
        except UserError as error:
            self.context.complain(str(error))
            return None

    def notes(self, samples: Sequence[tuple[str, TarSample]], left: Sequence[str]) -> list[str]:
        """Notes on members that nothing is read from."""
        members = Counter(extension for _, sample in samples for extension in sample.members)
        unread = {extension: count - self.used[extension] for extension, count in members.items()}
        everything = {**unread, **Counter(left)}
        counted = [
            f"{count} {extension}"
            for extension, count in sorted(everything.items(), key=lambda one: (-one[1], one[0]))
            if count > 0
        ]
        notes = [f"left out of its tar files: {shortened(', '.join(counted), 300)}"] if counted else []
        odd = sorted(extension for extension in self.used if "." in extension and _is_image(extension))
        if odd and self.source.image is None:
            count = sum(self.used[extension] for extension in odd)
            notes.append(
                f"the image of {count} of {len(samples)} samples is its {shortened(' or '.join(odd), 200)}, for it has "
                "no other; say which member is the image with image"
            )
        return notes


def _images(sample: TarSample) -> list[str]:
    return [name for name in sample.members if _is_image(name)]


def _is_image(extension: str) -> bool:
    return f".{extension.rpartition('.')[2]}" in listing.image_extensions()


def _listed_classes(home: Path, labels: Sequence[Any], what: str) -> tuple[tuple[str, ...], list[str]]:
    """The names that a file beside the tar files gives to numbered classes, and a note on it."""
    there = [label for label in labels if label is not None]
    if not there or not all(str(label).strip().isdigit() for label in there):
        return (), []
    for name in CLASS_FILES:
        if (home / name).is_file():
            names = classnames.lines(encodings.read(home / name, f"{what}: {name}"), f"{what}: {name}")
            shown = shortened(", ".join(map(repr, names[:3])) + ", …" * (len(names) > 3), 100)
            notes = [f"its classes are numbers, named by {name} ({len(names)} names: {shown})"]
            if repeated := [one for one, count in Counter(names).items() if count > 1]:
                notes.append(f"{name} calls several numbers {repeated[0]!r}: they are one class")
            return names, notes
    return (), []
