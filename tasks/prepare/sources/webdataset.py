"""``webdataset``: tar files of samples; members of one sample share a name: ``01.jpg``, ``01.txt``, ``01.cls``.

Short form ``webdataset:PATH``, with PATH a tar file or a folder of them; ``#train`` and ``#test``, and settings, as in
`Photographs`. Captions are ``txt`` members or ``caption`` or ``text`` in a ``json`` member; classes are ``cls`` members
(names, or numbers into ``classes``) or ``label`` or ``class`` in a ``json`` member. Given splits are files that start
with ``train`` and ``test`` (or validation). Nothing is unpacked to the disk, and no member is run or unpickled.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tasks.errors import UserError
from tasks.prepare import hugging
from tasks.prepare.photographs import CAPTION_COLUMNS, LABEL_COLUMNS, Photographs, Row, in_split
from tasks.prepare.sources.images import EXTENSIONS

if TYPE_CHECKING:
    import datasets


class WebDataset(Photographs):
    """See the module's docstring."""

    kind: ClassVar[str] = "webdataset"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return any(p.suffix.lower() == ".tar" for p in (path.iterdir() if path.is_dir() else [path]))

    def find(self, path: Path) -> tuple[list[Path], bool]:
        found = sorted(p for p in path.iterdir() if p.suffix.lower() == ".tar") if path.is_dir() else [path]
        if not found:
            raise UserError(f"webdataset: {self.path}: no .tar file there")
        return in_split(found, self, path)

    def rows(self, home: Path, found: Sequence[Path], scratch: Path) -> tuple[list[Row], bool]:
        what = f"webdataset: {self.path}"
        for path in found:
            _check_whole(path, what)
        table = hugging.load("webdataset", found, scratch, what)
        images = [table[name] for name in table.column_names if f".{name.split('.')[-1].lower()}" in EXTENSIONS]
        if not images:
            raise UserError(f"{what}: its samples have no images, only {', '.join(table.column_names)}")
        captions = hugging.as_texts(_members(table, self.caption, CAPTION_COLUMNS, what), (), f"{what}: captions")
        classes = hugging.as_texts(_members(table, self.label, LABEL_COLUMNS, what), self.classes, f"{what}: classes")
        rows = []
        for number, (key, tar) in enumerate(zip(table["__key__"], table["__url__"], strict=True)):
            inside = f"{Path(tar).relative_to(home).as_posix()}/{key}"
            shown, group = f"{self.path}:{inside}", f"{self.drawn_as or self.path}:{inside}"
            column = next((column for column in images if column[number] is not None), images[0])
            load = partial(hugging.encoded_at, column, number, shown)
            rows.append(Row(shown, group, captions[number], classes[number], load))
        return rows, False


def _check_whole(path: Path, what: str) -> None:
    """Look at all members' headers and the end mark: a cut-off tar reads as one with fewer samples, silently."""
    try:
        with tarfile.open(path) as tar:
            for _ in tar:
                pass
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            end = tar.fileobj.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{what}: {path.name} is damaged or no tar file: {error}") from None
    if end != bytes(tarfile.BLOCKSIZE):
        raise UserError(f"{what}: {path.name} is cut off: its end mark is missing")


def _members(table: datasets.Dataset, wanted: str | None, usual: Sequence[str], what: str) -> Iterable[Any]:
    """The values of a kind of member, or of a key in the samples' JSON."""
    names = [wanted] if wanted is not None else list(usual)
    if own := next((name for name in names if name in table.column_names), None):
        return table[own]
    if "json" in table.column_names:
        return [_first(content, names) for content in table["json"]]
    hugging.find_column(table, wanted, usual, what)  # complains if it was asked for
    return [None] * len(table)


def _first(content: Any, names: Sequence[str]) -> Any:
    return next((content[name] for name in names if content.get(name) is not None), None) if content else None
