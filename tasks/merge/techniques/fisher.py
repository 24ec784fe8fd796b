"""Fisher-weighted averaging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from tasks.errors import UserError
from tasks.merge.layout import Tensor
from tasks.merge.measured import Measured
from tasks.merge.sequential import Accumulator, Expert, State, Summary
from tasks.merge.technique import Share, Weighing
from tasks.merge.types import Array
from tasks.model.statistics import PRIOR


class Fisher(Weighing, Accumulator):
    """Entry by entry (Σ w_k F_k θ_k + prior·θ_0) / (Σ w_k F_k + prior), F_k expert k's diagonal Fisher on its data.

    With normalize: model, w_k is also divided by ‖F_k‖₂ over all tensors. Where no expert cares and there is neither
    floor nor prior, the base stays. The mean is a running one, so that copies of one model merge to it bit for bit.
    """

    name: ClassVar[str] = "fisher"
    source: ClassVar[str] = "Matena and Raffel 2022, Merging models with Fisher-weighted averaging (arXiv 2111.09832)"
    relative: ClassVar[bool] = False
    statistics: ClassVar[tuple[str, ...]] = ("fisher",)
    state: ClassVar[tuple[str, ...]] = ("mean", "weight")
    output_settings: ClassVar[frozenset[str]] = frozenset({"prior"})
    base_weight: ClassVar[str | None] = "prior"

    floor: float = Field(default=0.0, ge=0)
    """The least entry of F_k, before it is normalized; the paper's 1e-6 is above most entries of a trained expert."""
    prior: float = Field(default=0.0, ge=0)
    """What the base weighs in every entry: where experts care less, the merge stays with the base."""
    normalize: Literal["model", "none"] = "model"
    """``model``: divide each expert's weight by ‖F_k‖₂ over all its tensors, so that none outweighs the others."""
    forgetting: Share = 1.0
    """What is left of the earlier experts' weight when one more comes."""

    @property
    def needs_base(self) -> bool:
        return True

    def data_weight(self, measured: Measured, tensors: Sequence[Tensor]) -> float:
        share = 1.0 if self.weight is not None else float(measured.facts.experts)
        if self.normalize == "none" or measured.facts.estimator == PRIOR:  # which is a weight already
            return share
        norm = measured.fisher_norm(tensors, self.floor)
        return share / norm if norm else 0.0

    def recursion(self, trained_from_running: bool) -> list[str]:
        if self.forgetting < 1:
            raise UserError(
                "fisher: forgetting is for deploy: all; in an EMA recursion, weight is the share of the new expert"
            )
        return super().recursion(trained_from_running)

    @classmethod
    def by_part(cls) -> tuple[str, ...]:
        return ("weight", "prior", "forgetting")  # floor is in ‖F‖₂, which is the model's

    @override
    def update(self, state: State, x: Array, expert: Expert) -> None:
        if expert.weight < 0:
            raise UserError(f"fisher: a weight is {expert.weight:g}; a Fisher counts more or less, never against")
        assert expert.measured is not None
        fisher = np.maximum(expert.piece.fisher(expert.measured), self.floor)
        fisher *= expert.weight * expert.data_weight
        total = state["weight"]
        total *= self.forgetting
        total += fisher
        fisher /= np.where(total > 0, total, 1)
        x -= state["mean"]
        x *= fisher
        state["mean"] += x

    @override
    def finalise(self, state: State, summary: Summary) -> Array:
        mean, weight = state["mean"], state["weight"]
        weight += self.prior
        share = np.where(weight > 0, self.prior / np.where(weight > 0, weight, 1), 1).astype(mean.dtype, copy=False)
        mean += share * (summary.piece.base - mean)
        return mean
