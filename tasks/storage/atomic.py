"""Files and folders that are complete or absent: written beside their target, then renamed.

Whoever writes a target gets a private folder beside it, ``.NAME.part/TOKEN/``, created exclusively and locked (flock)
for as long as it is in use. So two processes, or two threads, never write into one file; and the lock tells what a
killed process left from what a living one writes, also from another container or, over NFS, another machine.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class PrivateFolder:
    """A new folder in ``shared``, readable by its owner alone, for as long as one process needs it.

    ``shared`` is made where it is missing, and removed with the last private folder in it. What killed processes left
    in it goes when the next private folder is made.
    """

    def __init__(self, shared: Path) -> None:
        _remove_unlocked(shared)
        self._shared = shared
        self._lock: int | None
        self.path, self._lock = _make_locked(shared)

    def close(self) -> None:
        """Remove the folder and all that is in it."""
        if self._lock is None:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):  # others are in it
            self._shared.rmdir()
        os.close(self._lock)
        self._lock = None


class Replacement:
    """A private `path` to write a file or a folder to, which `commit` moves to ``target`` in one rename.

    ``inside`` is another folder of the same file system for what is unfinished, where that of the target will not do.
    The target's folder must exist.
    """

    def __init__(self, target: Path, inside: Path | None = None) -> None:
        self.target = target
        self._folder = PrivateFolder((inside or target.parent) / f".{target.name}.part")
        self.path = self._folder.path / target.name
        """Does not exist yet."""

    def commit(self) -> None:
        """Give the target the new content; a folder takes the place of a folder."""
        if not self.path.is_dir() or not self.target.is_dir():
            self.path.replace(self.target)
            return
        before = self._folder.path / f".{self.target.name}.before"
        self.target.rename(before)
        try:
            self.path.rename(self.target)
        except BaseException:
            before.rename(self.target)
            raise

    def close(self) -> None:
        """Remove what is left beside the target. Without `commit`, that is all that was written."""
        self._folder.close()


@contextmanager
def private_folder(shared: Path) -> Iterator[Path]:
    """A `PrivateFolder` for the block; ``shared`` and its parents are made."""
    shared.parent.mkdir(parents=True, exist_ok=True)
    folder = PrivateFolder(shared)
    try:
        yield folder.path
    finally:
        folder.close()


@contextmanager
def made(path: Path, *, inside: Path | None = None) -> Iterator[Path]:
    """A private path to write a file or a folder to, which takes the place of ``path`` when the block ends.

    Where the block fails, nothing is left; what a killed process leaves, the next call for ``path`` removes. See
    `Replacement`.
    """
    replacement = Replacement(path, inside)
    try:
        yield replacement.path
        replacement.commit()
    finally:
        replacement.close()


@contextmanager
def made_folder(path: Path) -> Iterator[Path]:
    """As `made`: an empty folder to fill, which takes the place of ``path`` and of what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with made(path) as part:
        part.mkdir()
        yield part


def write(path: Path, content: str | bytes) -> None:
    """Write a small file, text as UTF-8; see `made`."""
    with made(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def link(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to the file ``source``; a copy on another file system, or one without hard links."""
    try:
        os.link(source, target)
    except FileExistsError:
        if source.samefile(target):
            return
        with made(target) as part:
            link(source, part)
    except FileNotFoundError:
        raise
    except OSError:
        with made(target) as part:
            shutil.copyfile(source, part)


def sync(path: Path) -> None:
    """Have a file's bytes on the disk: to be called before its name says that they are there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of any target in ``folder``."""
    for shared in folder.glob(".*.part"):
        if shared.is_dir():
            _remove_unlocked(shared)
            with suppress(OSError):  # a living process writes there
                shared.rmdir()


def _make_locked(shared: Path) -> tuple[Path, int]:
    """A new folder in ``shared``, and the descriptor that holds its lock."""
    while True:
        try:
            shared.mkdir()
        except FileExistsError:
            if not _is_folder(shared):  # never write through a link
                with suppress(FileNotFoundError, IsADirectoryError):  # another process removed it, or made the folder
                    shared.unlink()
                continue
        try:
            private = Path(tempfile.mkdtemp(dir=shared))
        except FileNotFoundError:  # another process removed the empty folder
            continue
        lock = _open_folder(private)
        if lock is None:
            continue
        with suppress(OSError):  # a file system without locks: then leftovers stay
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Before it was locked it looked like a leftover, and may be gone.
        try:
            if os.path.samestat(private.stat(), os.fstat(lock)):
                return private, lock
        except FileNotFoundError:
            pass
        os.close(lock)


def _is_folder(path: Path) -> bool:
    """Whether there is a folder, and no link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _remove_unlocked(shared: Path) -> None:
    """Remove the private folders that no living process holds."""
    try:
        left = [] if shared.is_symlink() else list(os.scandir(shared))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in left:
        lock = _open_folder(Path(entry.path))
        if lock is None:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(entry.path, ignore_errors=True)
        except OSError:  # a living process is at work there
            pass
        finally:
            os.close(lock)


def _open_folder(path: Path) -> int | None:
    """A descriptor of a folder; None where there is none (any more), or something else."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
