"""Models as folders that other libraries load: open_clip, and transformers."""

from __future__ import annotations

from tasks.convert.conversion import DTYPES, LIBRARIES, Converted, Library, convert

__all__ = ["DTYPES", "LIBRARIES", "Converted", "Library", "convert"]
