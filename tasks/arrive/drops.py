"""Files of somebody else's: an inbox is a trust boundary, and what is dropped there is copied before anything reads it.

Only regular files inside the drop are opened, each folder on the way without following links, and no more of them than
the limits allow. A link is read where it leads to a file of the same drop.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection
from pathlib import Path
from typing import BinaryIO

from tasks.errors import UserError
from tasks.params import Limits
from tasks.prepare import listing
from tasks.progress import Progress
from tasks.text import printable

CHUNK = 1 << 20
"""Bytes per read."""


def entries(drop: Path) -> list[str]:
    """The paths of all that a drop holds except folders, relative to it; no link is followed."""
    names: list[str] = []
    for parent, folders, files in os.walk(drop):
        linked = [name for name in folders if (Path(parent) / name).is_symlink()]
        names += [Path(parent, name).relative_to(drop).as_posix() for name in [*files, *linked]]
    return sorted(names)


def opened(drop: Path, name: str) -> BinaryIO:
    """Open the file ``name`` of a drop for reading.

    Raises:
        UserError: it is a link that leads out of the drop, or no regular file.
        FileNotFoundError, PermissionError: it cannot be read.
    """
    if drop.is_symlink():
        raise UserError(f"{drop}: is a link; put the folder itself there")
    where = drop / name
    if where.is_symlink():
        home, target = os.path.realpath(drop), os.path.realpath(where)
        if os.path.commonpath([home, target]) != home:
            raise UserError(f"{where}: is a link that leads out of the drop; put the file itself there")
        if not Path(target).exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(where))
        name = os.path.relpath(target, home)
    *folders, file = Path(name).parts
    with _OpenFolder(drop) as folder:
        try:
            for one in folders:
                folder.enter(one)
            descriptor = folder.open(file)
        except NotADirectoryError:
            raise UserError(f"{where}: lies behind a link; put the folder itself there") from None
        except OSError as error:
            if not isinstance(error, (FileNotFoundError, PermissionError)):
                raise UserError(f"{where}: cannot be read: {error.strerror}") from None
            error.filename = str(where)
            raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{where}: {listing.fault(where) or 'is no regular file; remove it'}")
    return os.fdopen(descriptor, "rb")


class _OpenFolder:
    """A folder that is open, and is left for folders in it one at a time."""

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def __enter__(self) -> _OpenFolder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def enter(self, name: str) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        inner = os.open(name, flags, dir_fd=self._descriptor)
        os.close(self._descriptor)
        self._descriptor = inner

    def open(self, name: str) -> int:
        # Without O_NONBLOCK, a FIFO would keep the caller waiting for somebody who writes to it.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=self._descriptor)


def copied(
    drop: Path,
    into: Path,
    limits: Limits,
    complain: Callable[[str], None],
    progress: Progress,
    *,
    ignored: Collection[str] = (),
    only: str | None = None,
) -> Path:
    """Copy a drop's files, or ``only`` one file or folder of it, to the folder ``into``; returns where the copy is.

    ``ignored`` are files at its top that are not data. What is not copied is complained of.

    Raises:
        UserError: the drop has more bytes than the limits allow.
        FileNotFoundError, PermissionError: a file cannot be read.
    """
    home = into / drop.name
    home.mkdir(parents=True)
    names = [name for name in entries(drop) if name not in ignored]
    if only is not None:
        names = [name for name in names if name.startswith(f"{only}/")] or [only]
    total = 0
    for done, name in enumerate(names, start=1):
        try:
            name.encode()
            with opened(drop, name) as source:
                size = os.fstat(source.fileno()).st_size
                total += size
                require_within(limits, total, size, f"{drop}/{name}", str(drop))
                target = home / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as sink:
                    _copy(source, sink, size)
        except UnicodeEncodeError:
            complain(f"{drop}/{printable(name)}: its name is not UTF-8; rename it")
        except _TooLargeError:
            raise
        except UserError as error:
            complain(str(error))
        progress(f"copying {drop.name}", done, len(names))
    return home / only if only is not None else home


class _TooLargeError(UserError):
    """No more of the drop is copied."""


def require_within(limits: Limits, total: int, size: int, name: str, drop: str) -> None:
    """Raises:
    UserError: a file of ``size`` bytes, or all of them with ``total``, is more than the limits allow.
    """
    if size > limits.file_bytes:
        raise _TooLargeError(
            f"{name}: has {size} bytes, more than {limits.file_bytes} (limits.file_bytes in params.yaml)"
        )
    if total > limits.drop_bytes:
        raise _TooLargeError(f"{drop}: has more than {limits.drop_bytes} bytes (limits.drop_bytes in params.yaml)")


def _copy(source: BinaryIO, sink: BinaryIO, size: int) -> None:
    """Copy at most ``size`` bytes: a file that grows meanwhile is caught as one that changed."""
    left = size
    while left > 0 and (chunk := source.read(min(CHUNK, left))):
        sink.write(chunk)
        left -= len(chunk)
