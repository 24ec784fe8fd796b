"""Places that a user names for output: what stands in the way is said before any work, not when the work is done."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from tasks.errors import UserError


def output(path: Path | str, *, folder: bool = False) -> Path:
    """The absolute path, without links, at which a file (or, with ``folder``, a folder) can be written.

    Folders that lead there need not exist yet. What is there already is for the caller to judge.

    Raises:
        UserError: no file can have that name, a file stands where a folder must be, links lead to themselves, or the
            nearest folder that exists may not be written to.
    """
    if "\0" in os.fspath(path):
        raise UserError(f"{os.fspath(path)!r}: a path cannot hold a null character; choose another name")
    whole = Path(os.path.realpath(path))
    if folder and _is_folder(whole, path) is False:
        raise UserError(f"{path}: is a file, not a folder; choose another place")
    for parent in ([whole] if folder else []) + list(whole.parents):
        is_folder = _is_folder(parent, path)
        if is_folder is False:
            raise UserError(f"{path}: {parent} is a file, not a folder; choose another place")
        if is_folder:
            if not os.access(parent, os.W_OK | os.X_OK):
                raise UserError(f"{path}: cannot be written: you may not write to {parent}; choose another place")
            break
    return whole


def _is_folder(path: Path, named: Path | str) -> bool | None:
    """Whether something is a folder; None where nothing is."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        why = "its links lead in a circle" if error.errno == errno.ELOOP else error.strerror
        raise UserError(f"{named}: cannot be written ({why}); choose another place") from None
