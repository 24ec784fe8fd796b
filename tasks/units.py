"""Bytes, seconds and counts as people read them."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes: 1234567 → 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds: 5400 → 1.5 h, 90 → 1.5 min; from two days on, days."""
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.1f} days"
    for length, unit in ((3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def counted(count: int, noun: str) -> str:
    """A count and its noun: 1 file, 2 files, 1,200 files."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
