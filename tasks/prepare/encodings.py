"""Text that others wrote: UTF-8, with or without a byte order mark. What it is instead is named, never guessed."""

from __future__ import annotations

import codecs
from pathlib import Path

from tasks.errors import UserError

_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip
_START = 4096
"""Bytes at the start of a text that tell UTF-16 from bytes that are no text."""
_BLOCK = 1 << 20


def text(data: bytes, what: str) -> str:
    """The bytes of a text, without a byte order mark.

    Raises:
        UserError: they are no UTF-8, or hold null bytes; names ``what``, and the encoding that they have.
    """
    require_start(data, what)
    try:
        decoded = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _other(what, data.count(b"\n", 0, error.start) + 1, data[error.start]) from None
    if "\0" in decoded:
        line = decoded.count("\n", 0, decoded.index("\0")) + 1
        raise UserError(f"{what}: line {line} holds a null byte; remove it")
    return decoded


def read(path: Path, what: str) -> str:
    """As `text`, of a file; also where it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{what}: cannot be read: {error.strerror or error}") from None
    return text(data, what)


def require_start(data: bytes, what: str) -> None:
    """As `text`, for what the first bytes of a file tell: UTF-16, UTF-32, or no text."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            raise UserError(f"{what}: it is {name}; save it as UTF-8 (iconv -f {name} -t UTF-8)")
    start = data[:_START]
    if b"\0" in start:
        name = "UTF-16" if start.count(0) * 4 > len(start) else "not text"
        raise UserError(f"{what}: it holds null bytes, so it is {name}; save it as UTF-8 text")


def require_text(path: Path, what: str) -> None:
    """As `text`, for a file of any size, which is read and not kept."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines, first = 1, True
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            if first:
                require_start(block, what)
                first = False
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                start = max(error.start, 0)
                raise _other(what, lines + error.object.count(b"\n", 0, start), error.object[start]) from None
            lines += block.count(b"\n")
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _other(what, lines, error.object[error.start]) from None


def _other(what: str, line: int, byte: int) -> UserError:
    return UserError(
        f"{what}: line {line} is not UTF-8 (byte 0x{byte:02x}), perhaps Latin-1 or Windows-1252; save it as UTF-8 "
        "(iconv -f WINDOWS-1252 -t UTF-8; texts of other scripts are often GB18030, SHIFT_JIS or KOI8-R)"
    )
