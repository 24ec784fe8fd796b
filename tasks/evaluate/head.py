"""Heads: classifiers on a model's features that are computed from labelled samples, beside the zero-shot classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import AfterValidator, Field, field_validator

from tasks.choice import Choice, create
from tasks.errors import UserError
from tasks.evaluate.support import Moments, Support, require_same_width
from tasks.params import Named

ALL = "all"
SEARCH = "search"
Space = Literal["base", "base+first", "deployed", "aligned"]
"""Whose features: the base's, the base's beside those of the first step's expert (APER), the deployed model's, or those
of deployed models that share one space (``deploy.compatible_with``): each sample's by the model of its step."""


@dataclass(frozen=True)
class Text:
    """The zero-shot classifier of a head's classes."""

    features: torch.Tensor
    """Of the classes' prompts, of unit length, float32, shape (C, D)."""
    scale: float
    """The factor on cosines, the exponential of the model's ``logit_scale``: 100 for CLIP."""

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """scale · f·tᵀ: float64, shape (N, C)."""
        return self.scale * (features.double() @ self.features.double().T)


class Classifier(ABC):
    """A fitted head."""

    @abstractmethod
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Of features of unit length, float (N, D): float64, shape (N, C); the largest is the predicted class."""

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """What the file of a head has of it beside what it was computed from."""
        return {}


@dataclass(frozen=True)
class LinearClassifier(Classifier):
    """Logits f·wᵀ + b."""

    weight: torch.Tensor
    """float64, shape (C, D)."""
    bias: torch.Tensor
    """float64, shape (C,)."""

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        require_same_width(features, self.weight)
        return features.double() @ self.weight.T + self.bias

    def tensors(self) -> Mapping[str, torch.Tensor]:
        return {"weight": self.weight.float(), "bias": self.bias.float()}


def _rising(shots: list[int | str]) -> list[int | str]:
    numbers = [one for one in shots if one != ALL]
    if numbers != sorted(set(numbers)) or ALL in shots[:-1]:
        raise ValueError("shots rise, each once, and 'all' comes last")
    return shots


Shots = Annotated[list[Annotated[int, Field(gt=0)] | Literal["all"]], Field(min_length=1), AfterValidator(_rising)]
Tunable = Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["search"]
"""A positive number, or ``search``: chosen on held-out support."""


class Head(Choice):
    """A head; its fields are its settings. One file in `tasks.evaluate.heads` defines one."""

    key: ClassVar[str] = "evaluate.heads"
    package: ClassVar[str] = "tasks.evaluate.heads"
    learns: ClassVar[bool] = True
    """Whether it is computed from labelled samples."""
    searches: ClassVar[Mapping[str, Sequence[float]]] = {}
    """Settings that may be ``search``: the values that are tried."""

    features: Space = "base"
    """Whose features it works on."""


class SupportHead(Head):
    """A head that needs the features of single samples."""

    mixes: ClassVar[bool] = True
    """Whether it adds to the zero-shot classifier."""

    shots: Shots = Field(default=[16])
    """Samples of each class; one score for each number."""
    without: list[str] = Field(default=[])
    """Classes that it does not know, though they have arrived."""

    @field_validator("shots")
    @classmethod
    def _of_its_kind(cls, value: list[int | str]) -> list[int | str]:
        if ALL in value and not issubclass(cls, MomentHead):
            raise ValueError(f"{cls.name} keeps the features of every sample: give a number of shots, not 'all'")
        return value

    def settled(self, data: Support | Moments) -> Self:  # noqa: ARG002 - most heads have no such setting
        """This head with those settings fixed that follow from the samples."""
        return self

    @abstractmethod
    def fit(self, support: Support, text: Text) -> Classifier:
        """The head of a support, with all settings fixed."""


class MomentHead(SupportHead):
    """A head that needs counts and sums alone, so that it may see all samples at the price of a few."""

    shots: Shots = Field(default=["all"])
    """Samples of each class, or ``all``; one score for each number."""

    @abstractmethod
    def from_moments(self, moments: Moments, text: Text) -> Classifier:
        """The head of counts and sums, with all settings fixed."""

    def fit(self, support: Support, text: Text) -> Classifier:
        return self.from_moments(support.moments(), text)


@dataclass(frozen=True)
class Fitted:
    """A head with the settings that it was fitted with, each fixed."""

    head: SupportHead
    classifier: Classifier
    searched: bool
    """Whether settings were chosen on held-out support."""


def chosen(named: Named) -> Head:
    """The head of an entry of ``evaluate.heads``.

    Raises:
        UserError: an unknown name, or a wrong setting.
    """
    head = create(Head, named)
    if isinstance(head, MomentHead) and ALL in head.shots and _open(head):
        raise UserError(
            f"evaluate.heads: {head.name}: {', '.join(_open(head))}: search needs samples to hold out, and shots: all"
            " keeps sums alone; give a number of shots or a value"
        )
    if isinstance(head, SupportHead) and head.features == "aligned" and head.without and ALL in head.shots:
        raise UserError(
            f"evaluate.heads: {head.name}: without takes samples out of sums by encoding them again, and with features:"
            " aligned the models that encoded them are gone; give a number of shots"
        )
    return head


def fit(head: SupportHead, data: Support | Moments, text: Text) -> Fitted:
    """Fit a head; settings that say ``search`` are chosen by the accuracy on held-out support.

    Of equally good values the first one is taken. Where no class has two samples nothing can be held out, and the
    settings have their defaults.

    Raises:
        UserError: fewer than two classes, a class without a sample, values that are not finite, or features and text
            of different widths.
    """
    _require_usable(head.name, data, text)
    if isinstance(data, Moments):
        assert isinstance(head, MomentHead)
        settled = head.settled(data)
        return Fitted(settled, settled.from_moments(data, text), searched=False)
    open_settings = _open(head)
    if not open_settings:
        return _of_support(head, data, text, searched=False)
    part, held = data.held_out()
    defaults = {name: type(head).model_fields[name].default for name in open_settings}
    if not len(held.labels):
        return _of_support(head.model_copy(update=defaults), data, text, searched=False)

    def right(one: SupportHead) -> int:
        return _right(_of_support(one, part, text, searched=True).classifier, held)

    return _of_support(max(_candidates(head, defaults), key=right), data, text, searched=True)


def _of_support(head: SupportHead, data: Support, text: Text, *, searched: bool) -> Fitted:
    settled = head.settled(data)
    return Fitted(settled, settled.fit(data, text), searched)


def _open(head: Head) -> list[str]:
    return [name for name in head.searches if getattr(head, name) == SEARCH]


def _candidates(head: SupportHead, defaults: Mapping[str, Any]) -> list[SupportHead]:
    """All combinations of values, the default of each setting first."""
    candidates: list[SupportHead] = [head]
    for name, default in defaults.items():
        values = [default, *(value for value in head.searches[name] if value != default)]
        candidates = [one.model_copy(update={name: value}) for one in candidates for value in values]
    return candidates


def _right(classifier: Classifier, held: Support) -> int:
    return int((classifier.logits(held.features).argmax(dim=1) == held.labels).sum())


def _require_usable(name: str, data: Support | Moments, text: Text) -> None:
    counts, features = (data.counts(), data.features) if isinstance(data, Support) else (data.counts, data.sums)
    if len(data.classes) < 2:
        known = f"only {data.classes[0]!r}" if data.classes else "no class"
        raise UserError(f"head {name}: {known} has labelled samples; a head needs two classes")
    if (counts == 0).any():
        raise UserError(f"head {name}: class {data.classes[int(counts.argmin())]!r} has no support")
    if not features.isfinite().all():
        raise UserError(f"head {name}: features of its support are not finite (NaN or infinity)")
    require_same_width(features, text.features)
