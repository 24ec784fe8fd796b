"""The files below a user's folder: which are read, which are refused, and which are left out and said to be.

Links are followed: a class folder may be one. What others drop is copied first, by stricter rules (`tasks.arrive`).
"""

from __future__ import annotations

import importlib.util
import os
import stat
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tasks.errors import UserError
from tasks.text import one_line

HEIC = frozenset((".heic", ".heif"))
EXTENSIONS = frozenset((
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp",
))  # fmt: skip
"""Of image files that are read as they are; `image_extensions` has `HEIC` too where its reader is installed."""

LEFT_BY_SYSTEMS = frozenset((
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "lost+found", "$recycle.bin", "__macosx", "__pycache__",
    "@eadir",
))  # fmt: skip
"""What operating systems and archive programs leave behind, beside hidden files: left out without a note."""

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device", stat.S_IFLNK: "a link",
}  # fmt: skip


@cache
def image_extensions() -> frozenset[str]:
    """Extensions, in lower case, of the image files that are read here."""
    return EXTENSIONS | (HEIC if importlib.util.find_spec("pillow_heif") else frozenset())


def is_image(file: Path) -> bool:
    """Whether a file's name is that of an image."""
    return file.suffix.lower() in image_extensions()


def is_hidden(name: str) -> bool:
    """Whether a file or folder is left out without a note: hidden, or left there by a system or an archive program."""
    return name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS


def walk(folder: Path) -> list[Path]:
    """All files below a folder, in the order of their folders' names; hidden ones are left out.

    Raises:
        UserError: a link leads back to a folder that it lies in, or a folder cannot be read.
    """
    files: list[Path] = []
    _walk(folder, (os.path.realpath(folder),), files)
    return files


def _walk(folder: Path, parents: tuple[str, ...], files: list[Path]) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from None
    visible = [entry for entry in entries if not is_hidden(entry.name)]
    files += [Path(entry.path) for entry in visible if not entry.is_dir()]
    for entry in visible:
        if entry.is_dir():
            target = os.path.realpath(entry.path)
            if target in parents:
                raise UserError(f"{entry.path}: is a link to a folder that it lies in; remove it")
            _walk(Path(entry.path), (*parents, target), files)


def fault(file: Path) -> str | None:
    """What keeps a file from being read and stored, in words; None for a regular file of a name in UTF-8."""
    try:
        os.fspath(file).encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return "is a link to nothing; remove it" if file.is_symlink() else "no such file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if stat.S_ISREG(mode):
        return None
    return f"is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}, not a file; remove it"


def left_out(files: Iterable[Path | str]) -> str | None:
    """One sentence on files that are not read, counted by extension; None where there are none."""
    counts = Counter(one_line(Path(file).suffix.lower()) or "without extension" for file in files)
    if not counts:
        return None
    by_number = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    sentence = f"left out: {', '.join(f'{count} {extension}' for extension, count in by_number)}"
    return sentence + heic_hint(counts)


def heic_hint(extensions: Iterable[str]) -> str:
    """How HEIC is read, the end of a sentence; empty where none of the extensions is one of its, or it is read."""
    if not (HEIC - image_extensions()).intersection(extensions):
        return ""
    return "; .heic and .heif are read once pillow-heif is installed: pip install -e '.[heic]'"
