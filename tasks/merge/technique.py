"""What a merging technique is: a frozen pydantic model whose fields are its settings, and whose methods its formula.

Nothing here knows of files. The engine (`tasks.merge.engine`) reads what a technique declares, refuses a wrong use
before any work, and then hands it float32 pieces of the models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tasks.errors import UserError

if TYPE_CHECKING:
    from tasks.merge.stream import Piece, Window

Array = NDArray[np.float32]
State = dict[str, Array]
"""The running state of a sequential form: arrays of one piece's shape, changed in place."""

Unit = Literal["slice", "row", "tensor"]
Scope = Literal["tensor", "tower", "model"]
Share = Annotated[float, Field(ge=0, le=1)]
Density = Annotated[float, Field(gt=0, le=1)]
"""The fraction of entries kept."""


class Lines(BaseModel):
    """LiNeS: block l of L of a merged task vector is scaled by alpha + beta·l/(L−1); what is no block, by alpha.

    Source: Wang et al. 2024 (arXiv 2410.17146), section 4; the defaults are TIME's (arXiv 2412.06712).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = 0.5
    beta: float = 0.5

    def factor(self, layer: int | None, layers: int) -> float:
        """The scale of one tensor; ``layer`` counts from 0, and is None outside the blocks."""
        if layer is None or layers < 2:
            return self.alpha
        return self.alpha + self.beta * layer / (layers - 1)


class Technique(BaseModel, ABC):
    """A merging technique f(models, base).

    A subclass sets `name` and `source`, declares its settings as fields, and implements `plan`, or is an
    `Accumulator`. Every array that it gets is float32; models are numbered from 0 in the order given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]
    source: ClassVar[str]
    """The paper, or the code, that the formula is from."""
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

    lines: Lines | None = None
    """LiNeS on the merged task vector."""

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


class Accumulator(Technique):
    """A technique with an exact sequential form: a state, an update with one expert, and what the state amounts to.

    The batch form is the same code over all experts, so that both give the same bits; one that overrides `plan` for a
    faster batch form says how close they are.
    """

    state: ClassVar[tuple[str, ...]]
    """Names of the arrays of the running state, all zero at first."""
    state_norms: ClassVar[tuple[str, ...]] = ()
    """Arrays whose squared norm `finalise` needs (`Summary.squares`): over `grouping`, after the last update."""

    @property
    def sequential(self) -> bool:
        return True

    def ranks(self, size: int) -> tuple[int, ...]:  # noqa: ARG002
        """Ranks r (1 ≤ r ≤ size) of magnitudes wanted: `Expert.thresholds` holds each r-th largest |x| of the group."""
        return ()

    @property
    def needs_norms(self) -> bool:
        """Whether `update` needs `Expert.norm`."""
        return False

    @abstractmethod
    def update(self, state: State, x: Array, expert: Expert) -> None:
        """Take one expert's piece (its task vector where `relative`) into the state, in place."""

    @abstractmethod
    def finalise(self, state: State, summary: Summary) -> Array:
        """What the state amounts to: the merged task vector where `relative`, otherwise the merged weights.

        The state is stored by then; its arrays may be used up.
        """

    def plan(self, window: Window) -> Callable[[Piece], Array]:
        from tasks.merge.sequential import batch_plan

        return batch_plan(self, window)


@dataclass(frozen=True, slots=True)
class Expert:
    """What an `Accumulator` may know of the expert it is given, for one piece."""

    piece: Piece
    weight: float
    total: float
    """Sum of the weights so far, this one included."""
    thresholds: Sequence[float]
    """As `Accumulator.ranks` asked."""
    norm: float
    """‖x‖ over the group, where `Accumulator.needs_norms`."""
    key: int
    """128-bit key of this expert's random numbers in this tensor."""

    @property
    def share(self) -> float:
        """This expert's share of the weights so far."""
        return self.weight / self.total if self.weight else 0.0

    def random16(self) -> NDArray[np.uint16]:
        """Uniform 16-bit integers, one an entry: a function of seed, technique, tensor, expert and position alone.

        They are drawn on the host whatever the device, so that a GPU drops the same entries.
        """
        first, shape = self.piece.start // 16, self.piece.shape
        skipped = self.piece.start - first * 16
        # Philox is counter based: one count is four 64-bit words, sixteen of our integers.
        words = np.random.Philox(key=self.key, counter=first).random_raw(-(-(skipped + self.piece.size) // 4))
        draws: NDArray[np.uint16] = words.astype("<u8", copy=False).view("<u2")
        return self.piece.window.device.put(draws[skipped : skipped + self.piece.size].reshape(shape))


@dataclass(frozen=True, slots=True)
class Summary:
    """What is known of all experts together when the state is turned into a model; over the group of the piece."""

    piece: Piece
    count: int
    """Number of experts."""
    total: float
    """Sum of their weights."""
    norms: float
    """Σ weight·‖x‖, where `Accumulator.needs_norms`."""
    moved: int
    """Number of experts with ‖x‖ > 0, where `Accumulator.needs_norms`."""
    squares: Mapping[str, float]
    """Squared norms of the arrays named in `Accumulator.state_norms`."""


class Weighted(Technique):
    """The settings of techniques that weigh experts."""

    weighted: ClassVar[bool] = True

    weight: Share | None = None
    """Of two models, the share of the first: in an EMA recursion, of the new expert. By default all weigh the same."""
    normalize: bool = False
    """Divide by the sum of the weights."""

    @property
    def normalizes(self) -> bool:
        return self.normalize

    def weights(self, count: int) -> list[float]:
        if self.weight is None:
            return super().weights(count)
        if count != 2:
            raise UserError(
                f"{self.name}: weight is the share of the first of two models, here are {count}; "
                "give each its own as FILE:WEIGHT"
            )
        return [self.weight, 1 - self.weight]
