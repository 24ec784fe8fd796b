"""A state as a model that others can use: its folder with a card, its lineage and its recipe; to a folder or a hub."""

from __future__ import annotations

from tasks.publish import public
from tasks.publish.publishing import Published, publish

__all__ = ["Published", "public", "publish"]
