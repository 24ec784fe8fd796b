"""A model of any kind made one like a base: under its names, with what a part lacks taken from it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.model import dialects
from tasks.model.sources import TensorEntry, TensorSource
from tasks.model.translated import as_the_base

OnMismatch = Literal["error", "base"]
"""What to do with a tensor whose shape differs from the base's: refuse the model, or take the base's tensor."""

_SHARED = re.compile(r"(?:text\.)?text_projection(?:\..*)?|visual\.proj|visual_projection\..*|logit_(?:scale|bias)")
"""What a tower that is saved alone may lack: the projection, and the temperature of both."""
_VISION = ("visual.", "vision_model.", "visual_projection.")


@dataclass(frozen=True)
class FittedModel:
    """A model that has been made like a base."""

    source: TensorSource
    lacking: tuple[str, ...] = ()
    """Tensors that are the base's because the model has none."""
    reshaped: tuple[str, ...] = ()
    """Tensors that are the base's because the model's have other shapes."""

    @property
    def of_base(self) -> bool:
        """Whether some tensors are the base's."""
        return bool(self.lacking or self.reshaped)


class NamesOnly:
    """A base of which the names and shapes are known, and no values."""

    def __init__(self, entries: Mapping[str, TensorEntry], label: str) -> None:
        self.entries, self.label = entries, label
        self.notes: list[str] = []

    def read_into(self, name: str, start: int, buffer: NDArray[Any]) -> None:  # noqa: ARG002 - as all sources
        """Raises:
        UserError: always.
        """
        raise UserError(f"{self.label}: its weights are not known yet, and {name!r} depends on them")


def fitted(source: TensorSource, base: TensorSource, on_mismatch: OnMismatch = "error") -> FittedModel:
    """A model under the names of a base, completed by it where it is one tower alone.

    A tower that is saved alone may lack its projection, and the temperature. What lacks otherwise stays lacking, what
    the base lacks stays there, and what has another shape keeps it unless ``on_mismatch`` is ``base``: all that is for
    the caller to name.

    Raises:
        UserError: it is of another dialect, which the base's names cannot be translated to.
    """
    source = as_the_base(source, base)
    common = source.entries.keys() & base.entries.keys()
    differing = sorted(name for name in common if not _alike(source.entries[name], base.entries[name]))
    reshaped = differing if on_mismatch == "base" else []
    lacking = _lacking(source.entries.keys(), base.entries.keys())
    if not lacking and not reshaped:
        return FittedModel(source)
    notes = []
    if lacking:
        notes.append(f"{source.label}: {_part(lacking)}; {len(lacking)} tensors are the base's ({shown(lacking)})")
    if reshaped:
        notes.append(f"{source.label}: {len(reshaped)} of other shapes are the base's ({shown(reshaped)})")
    source.notes.extend(notes)
    return FittedModel(_Completed(source, base, {*lacking, *reshaped}), tuple(lacking), tuple(reshaped))


class _Completed:
    """A source with a base behind it for some tensors."""

    def __init__(self, source: TensorSource, base: TensorSource, of_base: Collection[str]) -> None:
        self.label, self.notes = source.label, source.notes
        self.entries: Mapping[str, TensorEntry] = {**source.entries, **{name: base.entries[name] for name in of_base}}
        self._source, self._base, self._of_base = source, base, of_base

    def read_into(self, name: str, start: int, buffer: NDArray[Any]) -> None:
        """Fill ``buffer`` with the raw bytes of a tensor, from byte ``start`` on."""
        (self._base if name in self._of_base else self._source).read_into(name, start, buffer)


def _alike(one: TensorEntry, other: TensorEntry) -> bool:
    return one.shape == other.shape or {one.shape, other.shape} == {(), (1,)}


def _lacking(given: Collection[str], expected: Collection[str]) -> list[str]:
    """What a tower alone lacks; nothing where it is no complete tower."""
    wrapped = dialects.unwrapped(expected)
    lacking = {name for name, own in wrapped.items() if own not in given}
    vision = {name for name in wrapped if name.startswith(_VISION)}
    shared = {name for name in wrapped if _SHARED.fullmatch(name)}
    for tower in (vision, wrapped.keys() - vision):
        other = wrapped.keys() - tower - shared
        if tower - shared and other and other <= lacking <= other | shared:
            return sorted(wrapped[name] for name in lacking)
    return []


def _part(lacking: Collection[str]) -> str:
    names = [name for name in dialects.unwrapped(lacking) if not _SHARED.fullmatch(name)]
    return "a text tower alone" if names[0].startswith(_VISION) else "a vision tower alone"


def shown(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    few = list(names)[:3]
    return ", ".join(few) + (f" and {len(names) - len(few)} more" if len(names) > len(few) else "")
