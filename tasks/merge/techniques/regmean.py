"""RegMean: linear maps whose outputs are closest to the experts' own, on each expert's own inputs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from tasks.errors import UserError
from tasks.merge.layout import Tensor
from tasks.merge.matrices import solve
from tasks.merge.measured import Gram
from tasks.merge.sequential import Accumulator, Expert, State, Summary
from tasks.merge.technique import Share, Weighing
from tasks.merge.types import Array, GramForm, Unit
from tasks.model.sources import TensorEntry


class RegMean(Weighing, Accumulator):
    """Per linear map θ_0ᵀ + (Σ w_k G̃_k + ridge·I)⁻¹ Σ w_k G̃_k τ_kᵀ, G_k = Σ x xᵀ / samples over its inputs in expert k.

    G̃ is G with its off-diagonal entries times offdiagonal. Directions in which no expert has inputs stay as in the
    base. A weight whose Gram matrix is a diagonal (a token embedding's counts) is merged row by row: without ridge, a
    row that none uses is the mean. Tensors without a Gram matrix (biases, norms) are averaged.
    """

    name: ClassVar[str] = "regmean"
    source: ClassVar[str] = (
        "Jin et al. 2023, Dataless knowledge fusion by merging weights of language models (arXiv 2212.09849)"
    )
    statistics: ClassVar[tuple[str, ...]] = ("gram",)
    state: ClassVar[tuple[str, ...]] = ("gram", "moved", "moved_diagonal", "mean")
    output_settings: ClassVar[frozenset[str]] = frozenset({"offdiagonal", "ridge"})
    base_weight: ClassVar[str | None] = "ridge"
    unit: ClassVar[Unit] = "tensor"

    offdiagonal: Share = 0.95
    """Factor on the off-diagonal entries of the Gram matrices."""
    ridge: float = Field(default=0.0, ge=0)
    """Pulls to the base: what it weighs in every direction of the inputs."""

    @property
    def normalizes(self) -> bool:
        return True

    @override
    def kept_as(self, array: str, tensor: Tensor) -> TensorEntry | None:
        form = tensor.gram
        if form is None:
            kept = array == "mean"
        else:
            kept = array in ("gram", "moved", "moved_diagonal" if form.full else "mean")
        if not kept:
            return None
        if form is not None and array == "gram":
            return TensorEntry(tensor.state_dtype, (form.inputs,) * (1 + form.full))
        return TensorEntry(tensor.state_dtype, tensor.shape)

    @override
    def update(self, state: State, x: Array, expert: Expert) -> None:
        if expert.weight < 0:
            raise UserError(f"regmean: a weight is {expert.weight:g}; inputs count more or less, never against")
        assert expert.measured is not None
        gram = expert.piece.gram(expert.measured)
        if gram is not None:
            facts = expert.measured.facts
            weight = 1.0 if self.weight is not None else float(facts.experts)
            _add(state, x, gram, expert.weight * weight)
        if "mean" in state:
            x -= state["mean"]
            x *= expert.share
            state["mean"] += x

    @override
    def finalise(self, state: State, summary: Summary) -> Array:
        form = summary.piece.tensor.gram
        if form is None:
            return state["mean"]
        gram, moved = state["gram"], _matrix(state["moved"])
        if not form.full:
            total = _beside(gram + gram.dtype.type(self.ridge), form)
            used = total > 0
            merged: Array = np.where(used, moved / np.where(used, total, 1), _matrix(state["mean"]))
            return merged
        noise = float(np.finfo(gram.dtype).eps)
        system = gram.astype(np.float64)
        diagonal = np.diagonal(system).copy()
        system *= self.offdiagonal
        np.fill_diagonal(system, diagonal + self.ridge)
        moved *= self.offdiagonal
        moved += (1 - self.offdiagonal) * _matrix(state["moved_diagonal"])
        return solve(system, moved, noise) if form.rows else solve(system, moved.T, noise).T


def _add(state: State, x: Array, gram: Gram, weight: float) -> None:
    """Take w G, w G τᵀ and, beside a full Gram matrix, w diag(G) τᵀ into the state."""
    values = gram.values
    values *= weight
    state["gram"] += values
    tau, moved = _matrix(x), _matrix(state["moved"])
    if not gram.form.full:
        moved += _beside(values, gram.form) * tau
        return
    moved += values @ tau if gram.form.rows else tau @ values
    moved_diagonal = _matrix(state["moved_diagonal"])
    moved_diagonal += _beside(np.diagonal(values), gram.form) * tau


def _matrix(x: Array) -> Array:
    """A view of a weight as (out, in) or (in, out): all dimensions after the first together."""
    return x.reshape(x.shape[0], -1)


def _beside(values: Array, form: GramForm) -> Array:
    """A number an input, to be multiplied with a weight's matrix."""
    return values[:, None] if form.rows else values[None, :]
