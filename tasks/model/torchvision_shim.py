"""Lets torchvision import beside the CPU build of torch.

torchvision's wheel is built for the CUDA build of torch. Beside the CPU build its compiled operators do not load, and
its Python part then fails on ``operator torchvision::nms does not exist`` when it registers shape rules for them.
Nothing here uses these operators (open_clip needs only image transforms), so it is enough that their schemas are
known. Where torchvision imports by itself, nothing is done.

`ensure` does this for one process. ``python -m tasks.model.torchvision_shim``, a part of ``make install``, does it for
the environment, where that needs it: then a plain ``import open_clip`` works too. A start of Python costs some
microseconds more; nothing is imported until something imports torchvision.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from torch.library import Library

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
MODULE = "_torchvision_beside_cpu_torch"
"""The name of this file's copy in an environment: there ``tasks`` may be another one, that of a recorded state."""
# Python runs this line of a .pth file at each start: it must be one line, and quick.
LINE = (
    'import sys; sys.meta_path.insert(0, type("TorchvisionFinder", (), {"find_spec": staticmethod('
    f'lambda name, path=None, target=None: __import__("{MODULE}").find_spec(name, path, target)'
    ' if name == "torchvision" else None)}))\n'
)


@cache
def _library() -> Library:
    """Stays for the life of the process: the schemas go when the library object does."""
    from torch.library import Library

    return Library("torchvision", "FRAGMENT")


class _Loader(SourceFileLoader):
    """Runs torchvision's ``__init__``, and again after each operator that it misses."""

    def exec_module(self, module: ModuleType) -> None:
        """As `SourceFileLoader` does.

        Raises:
            RuntimeError: torchvision fails for any other reason; its own error, unchanged.
        """
        defined: set[str] = set()
        while True:
            try:
                return super().exec_module(module)
            except RuntimeError as error:
                missing = _MISSING.search(str(error))
                if missing is None or missing[1] not in _SCHEMAS or missing[1] in defined:
                    raise
                defined.add(missing[1])
                _library().define(_SCHEMAS[missing[1]])
                for name in [one for one in sys.modules if one.startswith("torchvision.")]:
                    del sys.modules[name]


def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
    """Where torchvision is, to be loaded by a loader that defines the operators it misses; None of all else."""
    spec = PathFinder.find_spec(name, path, target) if name == "torchvision" else None
    if spec is not None and isinstance(spec.loader, SourceFileLoader):
        spec.loader = _Loader(spec.loader.name, spec.loader.path)
    return spec


class _Finder:
    """For ``sys.meta_path``."""

    find_spec = staticmethod(find_spec)


@cache
def ensure() -> None:
    """Make torchvision importable in this process; call it before anything imports open_clip."""
    sys.meta_path.insert(0, _Finder)


def install() -> None:
    """Make torchvision importable in every process of this environment, if it is not by itself.

    Raises:
        subprocess.CalledProcessError: torchvision does not import with this either; its traceback is on stderr.
    """
    folder = Path(sysconfig.get_path("purelib"))
    pth, module = folder / f"{MODULE}.pth", folder / f"{MODULE}.py"
    pth.unlink(missing_ok=True)
    module.unlink(missing_ok=True)
    imported = [sys.executable, "-P", "-c", "import torchvision"]
    if subprocess.run(imported, capture_output=True, check=False).returncode:
        shutil.copyfile(__file__, module)
        pth.write_text(LINE, encoding="utf-8")
        subprocess.run(imported, check=True)


if __name__ == "__main__":
    install()
