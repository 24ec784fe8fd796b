"""Measuring a model that a user's own function opens: a language model, or any other torch module."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from tasks.errors import UserError
from tasks.measure.measurement import WIDEST, Measurement, measure
from tasks.progress import Progress, silent


def measure_own(
    function: str,
    model: str,
    out: Path,
    *,
    statistics: Sequence[str],
    pool: Any = None,
    seed: int = 0,
    widest: int = WIDEST,
    progress: Progress = silent,
) -> Measurement:
    """Measure with ``file.py:function``: takes ``model`` and gives (torch module, batches, outputs), as `measure` does.

    Raises:
        UserError: there is no such function, it fails, or it gives something else; or as `measure`.
    """
    opened, batches, outputs = _called(function, model)
    return measure(
        opened, batches, outputs, out, statistics=statistics, pool=pool or function, seed=seed, widest=widest,
        progress=progress,
    )  # fmt: skip


def _called(function: str, model: str) -> tuple[nn.Module, Any, Any]:
    file, colon, wanted = function.rpartition(":")
    path = Path(file)
    if not colon or not path.is_file():
        raise UserError(f"--with {function}: there is no file {file or function}; write it as path/to/file.py:function")
    spec = importlib.util.spec_from_file_location(f"_measured_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--with {function}: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    with _one_line(function, "it"):
        spec.loader.exec_module(module)
        if not callable(getattr(module, wanted, None)):
            raise UserError(f"--with {function}: {file} defines no function {wanted}")
        given = getattr(module, wanted)(model)
    if not isinstance(given, tuple) or len(given) != 3 or not isinstance(given[0], nn.Module) or not callable(given[2]):
        raise UserError(f"--with {function}: it should return (a torch module, batches, a function of a batch)")
    opened, batches, outputs = given
    with _one_line(function, "going through its batches"):
        every = list(batches)

    def told(batch: Any) -> Any:
        with _one_line(function, "its function of a batch"):
            return outputs(batch)

    return opened, every, told


@contextmanager
def _one_line(function: str, what: str) -> Iterator[None]:
    """Whatever the user's own code may raise, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--with {function}: {what} fails ({type(error).__name__}: {reason})") from error
