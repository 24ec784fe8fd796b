"""Whose names the tensors of a checkpoint have, and what they are in open_clip. Needs neither torch nor open_clip.

A dialect is one file here that defines a ``DIALECT``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from functools import cache

from tasks.model.dialects.recognise import adapter, naming, quantised
from tasks.model.dialects.rules import Change, Dialect, Rule, unwrapped, wrappings

__all__ = ["Change", "Dialect", "Rule", "adapter", "available", "naming", "of", "quantised", "unwrapped", "wrappings"]


@cache
def available() -> Mapping[str, Dialect]:
    """Every dialect by the name of its file, such as ``transformers_clip``."""
    modules = {info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
    return {name: module.DIALECT for name, module in modules.items() if hasattr(module, "DIALECT")}


def of(names: Collection[str]) -> Dialect | None:
    """The dialect that all of these names belong to; None for open_clip's own names and for unknown ones."""
    return next((dialect for dialect in available().values() if dialect.knows(names)), None)
