"""transformers' ``CLIPVisionModel`` as version 5 saves it: the vision tower alone, its names without a prefix."""

from __future__ import annotations

from tasks.model.dialects.rules import Dialect
from tasks.model.dialects.transformers_clip import vision

DIALECT = Dialect("transformers CLIPVisionModel", vision(""))
