"""Messages from a process to the one that started it: one JSON object a line, on its original stdout."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from typing import Any, TextIO

from tasks.errors import UnavailableError, UserError
from tasks.progress import Progress

EVERY = 0.2
"""Seconds between two messages about the same work."""


def answers() -> TextIO:
    """Take over stdout: from now on, what libraries print goes to stderr and not between the messages."""
    taken = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return taken


def send(answers: TextIO, **message: Any) -> None:
    print(json.dumps(message), file=answers, flush=True)


class ProgressSender:
    """Sends progress, at most one message in `EVERY` seconds for the same work."""

    def __init__(self, answers: TextIO):
        self._answers = answers
        self._last = ("", 0.0)

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if what != self._last[0] or now - self._last[1] >= EVERY:
            self._last = (what, now)
            send(self._answers, what=what, done=done, total=total, note=note)


def outcome(answers: Iterable[str], progress: Progress) -> list[str] | None:
    """Follow the messages of a run to its end, and pass its progress on.

    Returns the tags of the states that it recorded; None where the process ended without a word on how.

    Raises:
        UnavailableError: the run says that another try can help.
        UserError: the run says that another try cannot help.
    """
    for line in answers:
        message = json.loads(line)
        if "tags" in message:
            return list(message["tags"])
        if "error" in message:
            raise (UnavailableError if message.get("may_pass") else UserError)(message["error"])
        progress(message["what"], message["done"], message["total"], message["note"])
    return None
