"""Imports open_clip without what only some models need: transformers, timm and torch's compiler come when first used.

open_clip imports transformers for text towers of Hugging Face and for CoCa, timm for its vision towers, and by way of
torchvision's detection operators torch's compiler: two thirds of the time that its import takes. `prepare` has
stand-ins take the place of what four modules offer. Who calls a stand-in, or asks its module for another name, gets the
real one: the module is then imported, under its own name.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks import layout
from tasks.model import torchvision_shim

_OFFERED = {
    "open_clip.coca_model": ("CoCa",),
    "open_clip.hf_model": ("HFTextEncoder",),
    "open_clip.timm_model": ("TimmModel",),
    "torchvision.ops.roi_align": ("RoIAlign", "roi_align"),
}
"""Module → what other modules take from it as they are imported."""
_NEEDED_BY = {b'"hf_model_name"': "open_clip.hf_model", b'"timm_model_name"': "open_clip.timm_model"}
"""A key of open_clip's configurations → the module that a model with it needs."""


@cache
def prepare() -> None:
    """Make open_clip importable, and its import light; call it before anything imports open_clip."""
    torchvision_shim.ensure()
    sys.meta_path.insert(0, _Finder)


def load_towers(step: Path) -> None:
    """Import what the model in the folder of a step needs beyond open_clip itself; nothing where there is none yet."""
    try:
        text = (step / layout.HISTORY / "model/model.json").read_bytes()
    except OSError:
        return
    for key, name in _NEEDED_BY.items():
        loader = getattr(sys.modules.get(name), "__loader__", None)
        if key in text and isinstance(loader, _Later):
            loader.load(sys.modules[name])


class _Finder:
    """For ``sys.meta_path``."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _OFFERED else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Later(spec.loader)
        return spec


class _Later(Loader):
    """Fills a module with stand-ins, and with what it really has once one of them is used."""

    def __init__(self, real: Loader):
        self._real, self._loaded, self._lock = real, False, threading.RLock()

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Put the stand-ins in."""

        def real(name: str) -> Any:
            if name.startswith("__"):  # what the import system asks of every module
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            self.load(module)
            return getattr(module, name)

        vars(module)["__getattr__"] = real
        for name in _OFFERED[module.__name__]:
            setattr(module, name, _stand_in(module.__name__, name, real))

    def load(self, module: ModuleType) -> None:
        """Import the module, if that is still to be done."""
        with self._lock:
            if not self._loaded:
                self._loaded = True  # a circular import sees what is there so far, as ever
                try:
                    self._real.exec_module(module)
                except BaseException:
                    self._loaded = False
                    raise
                del vars(module)["__getattr__"]


def _stand_in(module: str, name: str, real: Callable[[str], Any]) -> type:
    """A class in place of a class or a function: called, it calls the real one, whose attributes it has."""

    class StandIn(type):
        def __call__(cls, *args: Any, **options: Any) -> Any:
            return real(name)(*args, **options)

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real(name))

        def __getattr__(cls, attribute: str) -> Any:
            return getattr(real(name), attribute)

    return StandIn(name, (), {"__module__": module})
