"""Models as folders that other libraries load: open_clip, and transformers."""

from __future__ import annotations

from tasks.convert.conversion import Converted, convert

__all__ = ["Converted", "convert"]
