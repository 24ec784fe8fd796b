"""Models as folders that other libraries load: open_clip, and transformers."""

from __future__ import annotations

from tasks.convert.conversion import LIBRARIES, Converted, Library, convert
from tasks.convert.merged import RECIPE, merge_into, recipe

__all__ = ["LIBRARIES", "RECIPE", "Converted", "Library", "convert", "merge_into", "recipe"]
