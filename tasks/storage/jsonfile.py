"""Small JSON files of our own: what a loss of power or an editor has damaged is named, with the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tasks.errors import UserError

T = TypeVar("T")


def read(path: Path, take: Callable[[Any], T], way_out: str) -> T:
    """What ``take`` makes of a file's content.

    ``way_out`` ends the sentence on a file that is damaged: what to do.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no JSON, or ``take`` misses a key or meets a value of another type.
    """
    try:
        return take(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: is damaged ({reason}); {way_out}") from None
