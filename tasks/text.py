"""Text that came from outside, made safe to show: on a terminal, in a log, on a page, in a table; no URL's secrets.

Pure functions; each may be applied twice without harm. They belong at the borders, where text leaves the process.
"""

from __future__ import annotations

import html
import re
import unicodedata

QUOTED = 500
"""Characters of input that a message may quote."""

_LAYOUT = frozenset("\n\t")
_JOINERS = frozenset("\u200c\u200d")
"""Invisible, and part of Persian words, Indian scripts and emoji."""
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Unicode's categories of control, format (bidirectional overrides too), surrogate and private characters."""

_PASSWORD = re.compile(r"://(?:[^/\s:@]*:(?!\d{1,5}(?:[/?#\s]|$))[^\s]*|[^/\s]*)@")
_PARAMETER = re.compile(r"([?&;#][\w.\-]*=)[^&;#\s'\"]+")
_SECRET = re.compile(r"(?i)token|secret|password|passwd|signature|credential|api_?key|access_?key|sig|auth")
_HEADER = re.compile(r"(?i)\b(authorization\s*[:=]\s*['\"]?(?:basic|bearer)\s+|x-api-key\s*:\s*)[^\s'\",]+")

_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
_MARKDOWN = re.compile(r"([\\`*_\[\]|~$])")


def printable(text: str) -> str:
    """A text in which control characters, escape sequences and bidirectional overrides are visible, not obeyed.

    Line ends and tabs stay; ``ESC`` becomes ``\\x1b``, a byte of a name that is not UTF-8 ``\\xff``.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def one_line(text: str) -> str:
    """`printable`, with every run of white space as one space: a name cannot pose as another line."""
    return printable(" ".join(text.split()))


def shortened(text: str, limit: int = QUOTED) -> str:
    """A text of at most ``limit`` characters (40 at least) that says how many it leaves out."""
    limit = max(limit, 40)
    if len(text) <= limit:
        return text
    room = limit - len(f" … ({len(text)} characters in all)")
    return f"{text[:room]} … ({len(text)} characters in all)"


def abridged(text: str, limit: int = 2 * QUOTED) -> str:
    """A text whose lines have at most ``limit`` characters: of a longer one the middle is left out, which is what it
    quotes; where something is wrong stands at the start of a message, and the way out at its end."""
    return "\n".join(_without_middle(line, limit) for line in text.split("\n"))


def _without_middle(line: str, limit: int) -> str:
    if len(line) <= limit:
        return line
    gap = f" … ({len(line)} characters in all) … "
    room = limit - len(gap)
    return line[: room - room // 4] + gap + line[-(room // 4) :]


def redacted(text: str) -> str:
    """A text without the user names and passwords, tokens and signatures of its URLs and headers.

    Takes time in proportion to its length, whatever it holds.
    """
    text = "".join(map(_without_password, re.split(r"(\s+)", text))) if "://" in text else text
    text = _PARAMETER.sub(lambda one: f"{one[1]}***" if _SECRET.search(one[1]) else one[0], text)
    return _HEADER.sub(r"\1***", text)


def _without_password(word: str) -> str:
    end = word.rfind("@") + 1
    return _PASSWORD.sub("://***@", word[:end]) + word[end:] if end else word


def csv_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: what looks like one gets a leading ``'``; a number does not."""
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def markdown(text: str) -> str:
    """A text as part of a line of Markdown, table cells too, that shows itself: no markup, links or HTML of its own."""
    return _MARKDOWN.sub(r"\\\1", html.escape(one_line(text), quote=False))


def _visible(character: str) -> str:
    if character in _LAYOUT or character in _JOINERS or unicodedata.category(character) not in _UNSAFE:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that Python could not decode (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
