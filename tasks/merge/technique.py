"""What a merging technique is: a frozen pydantic model whose fields are its settings, and whose methods its formula.

Nothing here knows of files. The engine (`tasks.merge.engine`) reads what a technique declares, refuses a wrong use
before any work, and then hands it float32 pieces of the models.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from tasks import choice
from tasks.choice import Choice
from tasks.errors import UserError
from tasks.merge.layout import Tensor
from tasks.merge.measured import Measured
from tasks.merge.stream import Piece, Window
from tasks.merge.types import Array, Scope, Unit
from tasks.params import Named

Share = Annotated[float, Field(ge=0, le=1)]
PartSettings = Mapping[str, float | tuple[float, ...]]
"""Settings of a part of the model: a number, or a gradient over the layers."""
Density = Annotated[float, Field(gt=0, le=1)]
"""The fraction of entries kept."""


class Lines(BaseModel):
    """LiNeS: block l of L of a merged task vector is scaled by alpha + beta·l/(L−1); what is no block, by alpha.

    With alpha: norm it is ‖Σ τ_k‖ / (N ‖τ‖), τ the technique's merged task vector of N experts: the shallowest layers
    are as long as in a plain average, whatever the technique and its scale; the paper then tunes beta alone. The norms
    are over the whole model and L1, as in the authors' code (the paper writes ‖·‖). It takes one more pass, and has no
    sequential form, since no state holds Σ τ_k.

    Source: Wang et al. 2024 (arXiv 2410.17146), section 4, and 5.2 for alpha: norm; the defaults are TIME's (arXiv
    2412.06712).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    alpha: float | Literal["norm"] = 0.5
    beta: float = 0.5


class Technique(Choice):
    """A merging technique f(models, base).

    A subclass sets `name` and `source`, declares its settings as fields, and implements `plan`, or is an
    `Accumulator`. Every array that it gets is float32; models are numbered from 0 in the order given.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    key: ClassVar[str] = "technique"
    package: ClassVar[str] = "tasks.merge.techniques"
    from_file: ClassVar[bool] = True
    models: ClassVar[tuple[int, int | None]] = (1, None)
    """Fewest and most models that it merges."""
    unit: ClassVar[Unit] = "slice"
    """What a piece may be cut into: any slice, whole rows, or whole tensors."""
    relative: ClassVar[bool] = True
    """Whether it merges task vectors θ_k − θ_0; otherwise it merges weights as they are."""
    stacked: ClassVar[bool] = False
    """Whether it holds a piece of all models at once (`Piece.vectors`): the more models, the shorter the pieces."""
    weighted: ClassVar[bool] = False
    """Whether models may be given weights."""
    random: ClassVar[bool] = False
    """Whether it draws random numbers, so that the models' content hashes are needed."""

    statistics: ClassVar[tuple[str, ...]] = ()
    """What it needs to know of each expert's own data: ``fisher``, ``gram`` (`tasks.model.statistics`)."""
    base_weight: ClassVar[str | None] = None
    """The setting that says what the base weighs; as much weighs an expert without data (`tasks.measure.prior`)."""
    weighing: ClassVar[frozenset[str]] = frozenset({"weight"})
    """Settings that the models' weights come from."""
    ranked: ClassVar[frozenset[str]] = frozenset({"density", "gamma"})
    """Settings that statistics over a tower or the model depend on: tensors that differ in them are apart in these."""

    lines: Lines | None = None
    """LiNeS on the merged task vector."""
    parts: Mapping[str, PartSettings] | None = None
    """Settings of parts of the model by pattern (`tasks.merge.parts`); a list is a gradient over the layers."""

    @field_validator("parts", mode="before")
    @classmethod
    def _parts_set_what_they_may(cls, parts: Any) -> Any:
        known = cls.by_part()
        for pattern, settings in parts.items() if isinstance(parts, Mapping) else ():
            if isinstance(settings, Mapping) and not settings:
                raise ValueError(f"{pattern} sets nothing; give it a setting, or leave it out")
            for key in settings if isinstance(settings, Mapping) else ():
                if key not in known:
                    accepted = f"a part may set {', '.join(known)}" if known else "its parts have no settings"
                    raise ValueError(f"{pattern}: {key!r} is not set by part; {accepted}")
        return parts

    @model_validator(mode="after")
    def _parts_are_accepted(self) -> Self:
        for pattern, settings in (self.parts or {}).items():
            where = f"parts.{pattern}"
            for key, value in settings.items():
                values = value if isinstance(value, tuple) else (value,)
                if not values:
                    raise ValueError(f"{where}.{key} is an empty list; give one number a place in the layers")
                for one in values:
                    try:
                        self.with_own({key: one})
                    except ValidationError as error:
                        message = error.errors()[0]["msg"].removeprefix("Value error, ")
                        raise ValueError(f"{where}.{key} is {one:g}; {message[0].lower()}{message[1:]}") from None
        return self

    @model_serializer(mode="wrap")
    def _without_empty_parts(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        settings: dict[str, Any] = serialize(self)
        return settings if self.parts else {key: value for key, value in settings.items() if key != "parts"}

    @classmethod
    def by_part(cls) -> tuple[str, ...]:
        """Settings that a part of the model may have of its own (`at` has them); none unless a technique says so."""
        return ()

    def with_own(self, settings: Mapping[str, float]) -> Self:
        """The technique with the settings of one part.

        Raises:
            pydantic.ValidationError: a value is not accepted.
        """
        given = {key: getattr(self, key) for key in self.model_fields_set - {"parts"}}
        return type(self).model_validate({**given, **settings})

    def at(self, piece: Piece) -> Self:
        """The technique with the settings of the part that a piece is in."""
        return piece.window.of(self, piece.tensor)

    @property
    def needs_base(self) -> bool:
        """Whether θ_0 must be given: for task vectors, and for LiNeS, which never scales raw weights."""
        return self.relative or self.lines is not None

    @property
    def grouping(self) -> Scope:
        """Over what statistics are taken."""
        return "tensor"

    @property
    def sequential(self) -> bool:
        """Whether these settings have an exact form that reads one expert and a running state."""
        return False

    @property
    def normalizes(self) -> bool:
        """Whether it divides by the sum of the weights, which then has to be positive."""
        return False

    def weights(self, count: int) -> list[float]:
        """The weight of each of ``count`` models, where the caller gives none."""
        return [1.0] * count

    def data_weight(self, measured: Measured, tensors: Sequence[Tensor]) -> float:  # noqa: ARG002
        """What an expert weighs by its statistics over the whole model, a factor beside its weight."""
        return 1.0

    def recursion(self, trained_from_running: bool) -> list[str]:  # noqa: ARG002
        """What is worth knowing before an EMA recursion EMA_t = f([θ_t, EMA_{t-1}]) with these settings.

        Args:
            trained_from_running: experts start from the running model (``init: ema``).

        Raises:
            UserError: it diverges.
        """
        return []

    @abstractmethod
    def plan(self, window: Window) -> Callable[[Piece], Array]:
        """Take the statistics it needs from ``window``, and return what computes one piece of the merged model.

        The function returns the merged task vector where `relative`, otherwise the merged weights.
        """


def numbers(technique: type[Technique]) -> tuple[str, ...]:
    """The settings of a technique that are numbers."""

    def is_number(annotation: Any) -> bool:
        return annotation in (int, float) or any(is_number(one) for one in get_args(annotation))

    fields = technique.model_fields.items()
    return tuple(name for name, f in fields if name not in ("lines", "parts") and is_number(f.annotation))


def gradient_at(value: float | Sequence[float], place: float) -> float:
    """The value of a gradient at a place in the layers, from 0 to 1."""
    if not isinstance(value, Sequence):
        return value
    scaled = place * (len(value) - 1)
    first = min(int(scaled), len(value) - 1)
    share = scaled - first
    return value[first] if share == 0 else (1 - share) * value[first] + share * value[first + 1]


def available() -> Mapping[str, type[Technique]]:
    """All techniques that come with the package, by name."""
    return choice.available(Technique)


def create(name: str, settings: Mapping[str, Any]) -> Technique:
    """A technique by name, or ``file.py:Class``, with its settings.

    Raises:
        UserError: unknown technique or setting, or a value that a setting does not accept; names key and value.
    """
    chosen = Named.model_validate({**settings, "name": name})
    return choice.create(Technique, chosen)  # type: ignore[type-abstract]


class Weighing(Technique):
    """The setting of techniques that weigh experts."""

    weighted: ClassVar[bool] = True

    weight: Share | None = None
    """Of two models, the share of the first: in an EMA recursion, of the new expert. By default all weigh the same."""

    def weights(self, count: int) -> list[float]:
        if self.weight is None:
            return super().weights(count)
        if count != 2:
            raise UserError(
                f"{self.name}: weight is the share of the first of two models, got {count}; "
                "give each its own as FILE:WEIGHT"
            )
        return [self.weight, 1 - self.weight]


class Weighted(Weighing):
    """The settings of techniques that weigh experts, and may divide by the sum of the weights."""

    normalize: bool = False
    """Divide by the sum of the weights."""

    @property
    def normalizes(self) -> bool:
        return self.normalize
