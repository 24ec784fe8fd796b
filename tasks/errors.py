"""The errors that people are meant to read; none of them gives away a password."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.text import abridged, printable, redacted

if TYPE_CHECKING:
    from pydantic import ValidationError


class ReadableError(Exception):
    """Its message is safe to show and to log: no secrets of URLs, no control characters, no line without end."""

    def __init__(self, message: str):
        super().__init__(abridged(printable(redacted(message))))


class UserError(ReadableError):
    """Something the user can mend: one sentence that names the file, key or value, and the way out.

    The command line prints it as one line and exits with status 2; anything else is a defect of ours and
    keeps its traceback.
    """


class UnavailableError(UserError):
    """A store or a network that does not answer: it may pass by itself, and the same command works later."""


def first_problem(error: ValidationError, top: str = "") -> str:
    """The first value that pydantic refuses, as ``key: what is wrong``; ``top`` is the key of the whole."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"])) or top
    reason = first["msg"].removeprefix("Value error, ")
    return f"{key}: {reason}" if key else reason


_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "DefaultCPUAllocator")
"""Parts of torch's messages for too little memory on the CPU; it has no error class for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, NumPy or torch says that there is too little memory, on the CPU or on a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def may_pass(error: object) -> bool:
    """Whether another try can help: against networks and stores, never against what the user must mend."""
    return not isinstance(error, UserError) or isinstance(error, UnavailableError)
