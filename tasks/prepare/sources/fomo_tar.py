"""``fomo-tar``: a set of FoMo-in-Flux as its authors' archive, which is not unpacked: in a folder, or on a hub.

Short form ``fomo-tar:ROOT/NAME#train``, ``#test``. ROOT is a folder or a repository (``hf:ORG/NAME[@REVISION]``) with
``NAME.tar`` (or shards, ``NAME/0.tar`` or ``NAME-0.tar``), whose members are ``NAME/`` and an image's path in the
annotations. These, settings and captions are as of ``fomo``; by default they lie in a folder ``00_info`` of ROOT.

An archive comes whole, for tar files have no index; it stays in the hub's cache, and a state keeps a tar file of the
images that are read, and their annotations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Self

from tasks.errors import UserError
from tasks.prepare import tars
from tasks.prepare.annotated import COPY, INFO, Annotated, Annotations, names_of, read
from tasks.prepare.hosted import FileChoice, Hosted, Needed, Part
from tasks.prepare.image_source import Rows
from tasks.prepare.places import Folder, Place, pick
from tasks.prepare.source import Context, Outside
from tasks.progress import silent
from tasks.storage import hub
from tasks.text import shortened
from tasks.units import size


class FomoTar(Annotated, Hosted):
    """A set of FoMo-in-Flux as its archive, not unpacked, in a folder or on a hub: ``fomo-tar:ROOT/NAME#train``."""

    name: ClassVar[str] = "fomo-tar"

    @property
    def data_set(self) -> str:
        """The set's name."""
        return PurePosixPath(self.path).name

    @property
    def selection(self) -> list[Any]:
        return [*super().selection, self.info]

    def address(self, project: Path) -> hub.Address | None:  # noqa: ARG002 - its form says it
        if not hub.is_address(self.path):
            return None
        address = hub.parse(self.path, "dataset")
        if not address.file:
            raise UserError(f"{self.what}: names no set; write hf:ORG/NAME/SET, such as hf:ORG/NAME/CUB200")
        return replace(address, file=None)

    def place(self, project: Path) -> Place:
        if address := self.address(project):
            return hub.look(address)
        root = (project / self.path).parent
        if not root.is_dir():
            raise UserError(f"{self.what}: no such folder {root}")
        files = [*root.glob("*.tar"), *(root / self.data_set).glob("*.tar"), *(root / INFO).glob("*.json")]
        names = {file.relative_to(root).as_posix(): file.stat().st_size for file in files if file.is_file()}
        return Folder(root, PurePosixPath(self.path).parent.as_posix(), frozenset(names), names)

    def pinned(self, project: Path) -> Self:
        if not isinstance(place := self.place(project), hub.Snapshot):
            return self
        within = hub.parse(self.path, "dataset").file
        return self.model_copy(update={"path": str(replace(place.address, revision=place.commit, file=within))})

    def check(self, project: Path) -> None:
        if self.address(project) is None:
            self.choose(self.place(project), Outside(project, project, 0, silent))

    def choose(self, place: Place, outside: Outside) -> FileChoice:
        pick(["train", "test"], self.split, self.what)
        one = re.escape(self.data_set)
        shards = re.compile(rf"(?:.*/)?{one}(?:[/._-](?:(?:train|test|val)[._-]?)?\d*)?\.tar")
        archives = sorted(name for name in place.names if shards.fullmatch(name))
        alone = [name for name in archives if PurePosixPath(name).name == f"{self.data_set}.tar"]
        if not archives:
            raise UserError(f"{self.what}: there is no {self.data_set}.tar")
        self._annotations(place, outside)
        return FileChoice(str(self.split), tuple(alone[:1] or archives))

    def _annotations(self, place: Place, outside: Outside) -> list[str]:
        """The files of annotations there may be for the part, in their order: paths of the place, or of ``info``.

        Raises:
            UserError: there are none.
        """
        names = names_of(self.data_set, str(self.split))
        if self.info is not None:
            folder = outside.project / self.info
            paths = [str(folder / name) for name in names if (folder / name).is_file()]
        else:
            within = {PurePosixPath(name).name: name for name in place.names if INFO in PurePosixPath(name).parts}
            paths = [within[name] for name in names if name in within]
        if not paths:
            where = self.info or f"the folder {INFO} there"
            raise UserError(
                f"{self.what}: {where} has no {names[-2]}; give the folder of the benchmark's annotation files with "
                "info (stream import --info FOLDER)"
            )
        return paths

    def priced(self, chosen: FileChoice, place: Place, outside: Outside) -> Needed:  # noqa: ARG002 - archives are whole
        return Needed(list(chosen.files))

    def needed(self, chosen: FileChoice, place: Place, outside: Outside) -> Needed:
        folder = place.bring(chosen.files, outside.progress)
        members = {name: self._members(folder / name) for name in chosen.files}
        there = {image for images in members.values() for image in images}
        known = self.chosen(self._known(place, there, outside))
        wanted = sorted(known)[: self.first]
        if absent := [name for name in wanted if name not in there]:
            raise UserError(
                f"{self.what}: {len(absent)} of {len(wanted)} images are not in {', '.join(chosen.files)}, such as "
                f"{shortened(absent[0], 200)}"
            )
        taken = set(wanted)
        parts: dict[str, Part] = {}
        for name, images in members.items():
            if mine := [image for image in images if image in taken]:
                kept = outside.cache / f"{len(parts)}.tar"
                tars.write(kept, {image: images[image] for image in mine})
                parts[name] = Part(f"{len(mine)} of the {len(images)} images", kept.stat().st_size, kept)
        told = outside.cache / COPY
        content = {name: known[name].model_dump(exclude_none=True) for name in wanted}
        told.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        bytes_of_all = size(sum(place.sizes.get(name, 0) for name in chosen.files))
        note = f"{len(wanted)} of {len(there)} images kept of {', '.join(chosen.files)} ({bytes_of_all}, read whole)"
        return Needed(list(parts), [note], parts, {COPY: told})

    def _known(self, place: Place, there: set[str], outside: Outside) -> Annotations:
        """The annotations of the part whose images the archives have: those of the small images, or the others."""
        for name in (tables := self._annotations(place, outside)):
            file = Path(name) if self.info is not None else place.bring([name], outside.progress) / name
            known = read(file, self.what)
            if name == tables[-1] or next(iter(known)) in there:
                break
        return known

    def _members(self, archive: Path) -> dict[str, tars.TarMember]:
        """The files of an archive by their paths below the set's folder."""
        members = tars.members(archive, self.what)
        return {name.removeprefix("./").removeprefix(f"{self.data_set}/"): member for name, member in members.items()}

    def rows(self, home: Path, files: Sequence[Path], context: Context) -> Rows:  # noqa: ARG002 - as all sources
        members = {name: one for file in files for name, one in tars.members(file, self.what).items()}
        images = {name: members[name].content for name in sorted(members)}
        return self.annotated_rows(images, read(home / COPY, self.what))
