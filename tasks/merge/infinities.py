"""Infinities that all models share, such as those of an attention mask: copied, where others stop the merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from tasks.errors import UserError
from tasks.merge.reading import NotFiniteError, read
from tasks.model.dtypes import FLOATS, decode, stored_as
from tasks.model.sources import TensorSource, equal

Result = TypeVar("Result")

_READ_AT_ONCE = 1 << 24


def with_equal_infinities(
    attempt: Callable[[Mapping[str, str]], Result], reference: TensorSource, others: Mapping[str, TensorSource]
) -> Result:
    """Merge; where a tensor holds infinities that are the same in all models, such as a mask, copy all such tensors.

    Raises:
        UserError: a tensor holds NaN, or infinities that differ.
    """
    try:
        return attempt({})
    except NotFiniteError as error:
        copied = _equal_infinities(reference, others) if error.name in reference.entries else {}
        if error.name not in copied:
            models = (reference, *others.values())
            if not all(error.name in one.entries and _only_infinities(one, error.name) for one in models):
                raise
            raise UserError(
                f"{error.source.label}: tensor {error.name!r} holds infinity where the models differ; a mask must be "
                "the same in all models, and a model that diverged cannot be merged"
            ) from None
    return attempt(copied)


def _equal_infinities(reference: TensorSource, others: Mapping[str, TensorSource]) -> dict[str, str]:
    copied: dict[str, str] = {}
    for name, entry in reference.entries.items():
        if entry.dtype not in FLOATS or not all(name in other.entries for other in others.values()):
            continue
        try:
            for start in range(0, entry.size, _READ_AT_ONCE):
                read(reference, name, start, min(entry.size, start + _READ_AT_ONCE))
        except NotFiniteError:
            if _only_infinities(reference, name) and all(equal(reference, name, o, name) for o in others.values()):
                copied[name] = "it holds infinity, the same in all models"
    return copied


def _only_infinities(source: TensorSource, name: str) -> bool:
    """Whether a tensor holds infinities, and no NaN."""
    entry = source.entries[name]
    raw = np.empty(entry.size, stored_as(entry.dtype))
    source.read_into(name, 0, raw)
    values = decode(raw, entry.dtype, np.float64)
    return bool(np.isinf(values).any() and not np.isnan(values).any())
