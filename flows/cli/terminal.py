"""What the command line prints: text as it is, never as markup or control characters; a closed pipe is no error."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from tasks.text import printable


class Terminal(Console):
    """A console that obeys nothing in what it prints; sentences wrap only where a terminal wraps them."""

    def __init__(self, *, stderr: bool = False):
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        options.setdefault("soft_wrap", all(isinstance(one, str) for one in objects))
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every text that becomes visible passes here: sentences, cells, titles."""
        return super().render_str(printable(text), **options)


out = Terminal()
"""Answers, on stdout."""
errors = Terminal(stderr=True)
"""What went wrong, on stderr."""


def print_json(value: Any) -> None:
    """An answer for programs: ASCII, so that no control character, encoding or terminal can change it.

    A number that is not finite is null: JSON has no word for it.
    """
    plain = json.loads(json.dumps(value), parse_constant=lambda _: None)
    out.file.write(json.dumps(plain, indent=2) + "\n")
    out.file.flush()


def protect() -> None:
    """Let the process outlive who reads its output, and print what the output's encoding lacks as an escape."""
    sys.stdout, sys.stderr = _protected(sys.stdout), _protected(sys.stderr)


class _Pipe(io.FileIO):
    """A descriptor that goes on into nothing once its reader has gone (``chronomerge techniques | head -1``)."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            return len(data)


def _protected(stream: TextIO) -> TextIO:
    try:
        raw = _Pipe(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError, AttributeError):  # not a file: a test's, or none
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors="backslashreplace", line_buffering=True
    )
