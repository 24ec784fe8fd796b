"""Copies that are complete or absent, and hashes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from tasks.errors import UserError
from tasks.storage import atomic

IMAGE_BYTES = 512 << 20
"""Size of the largest image file that is read: as many pixels as Pillow allows, of three bytes."""
FICLONE = 0x40049409
"""Linux's ioctl for a copy-on-write copy (linux/fs.h)."""


def copy(source: Path, target: Path) -> None:
    """Copy a file's content, copy-on-write where the file system can; never a link, so that neither changes the other.

    Nothing is done where the target already has the source's content.

    Raises:
        UserError: the source is gone or cannot be read, or has changed while it was copied; names it.
    """
    try:
        opened = source.open("rb")
    except OSError as error:
        raise UserError(
            f"{source}: cannot be read: {error.strerror or error}; run again when nothing changes it"
        ) from None
    with opened as a:
        before = os.fstat(a.fileno())
        if (
            target.is_file()
            and target.stat().st_size == before.st_size
            and digest(target) == hashlib.file_digest(a, "sha256").digest()
        ):
            return
        a.seek(0)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic.made(target) as part:
            with part.open("wb") as b:
                try:
                    fcntl.ioctl(b.fileno(), FICLONE, a.fileno())
                except OSError:  # no copy-on-write here
                    shutil.copyfileobj(a, b, 1 << 20)
            after = os.fstat(a.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise UserError(f"{source}: changed while it was copied; run again when nothing writes to it")


def image(path: Path, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes of an image file, or of a part of an archive that is one.

    Raises:
        OSError: it cannot be read, or is larger than `IMAGE_BYTES`.
    """
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size if size is None else size
        if length > IMAGE_BYTES:
            raise OSError(errno.EFBIG, f"has {length} bytes, and images of up to {IMAGE_BYTES} are read", str(path))
        file.seek(offset)
        return file.read(length)


def digest(path: Path, algorithm: str = "sha256") -> bytes:
    """The hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).digest()
