"""How long work says how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Called now and then by long work; must return at once and may be called from any thread."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total`` units of ``what`` are finished; ``note`` is a fact worth showing (a loss, a rate)."""


def silent(what: str, done: int, total: int, note: str = "") -> None:
    """Nobody listens."""


_listener: Progress = silent


def listen(listener: Progress) -> None:
    """Choose who hears of the work that flows do in this process (as with logging: one for all of it)."""
    global _listener
    _listener = listener


@contextmanager
def also(listener: Progress) -> Iterator[None]:
    """Let another one hear of it too, while the block lasts."""
    global _listener
    before = _listener

    def both(what: str, done: int, total: int, note: str = "") -> None:
        before(what, done, total, note)
        listener(what, done, total, note)

    _listener = both
    try:
        yield
    finally:
        _listener = before


def report(what: str, done: int, total: int, note: str = "") -> None:
    """Tell the process's listener; this is the `Progress` that Prefect tasks hand to their work."""
    _listener(what, done, total, note)


def of_step(step: int) -> Progress:
    """`report`, with the time step named first."""

    def in_step(what: str, done: int, total: int, note: str = "") -> None:
        report(f"step {step}: {what}", done, total, note)

    return in_step
