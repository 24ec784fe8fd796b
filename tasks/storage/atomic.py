"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def made(path: Path, *, alone: bool = True) -> Iterator[Path]:
    """A path beside ``path`` to write a file to, which takes the place of ``path`` when the block ends.

    A kill may leave it behind, and the next call writes over it; where others may write the same file just then, the
    caller is not ``alone``, and each has a name of its own. Where the block fails, nothing is left.
    """
    part = path.with_name(f".{path.name}.part" if alone else f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write(path: Path, content: str | bytes, *, alone: bool = True) -> None:
    """Write a small file, text as UTF-8; see `made`."""
    with made(path, alone=alone) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Have a file's bytes on the disk: to be called before its name says that they are there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
