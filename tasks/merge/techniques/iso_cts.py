"""Iso-CTS: an isotropic space of what the experts share and of what each has alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from typing_extensions import override

from tasks.merge.matrices import orthonormalize, product, subtract_product, top, top_and_rest
from tasks.merge.stream import Piece, Window
from tasks.merge.technique import Share, Technique
from tasks.merge.types import Array, Unit


class IsoCts(Technique):
    """Per matrix, the top singular vectors of Σ τ_k, and of each τ_k outside them; all singular values their mean.

    Of min(rows, columns) directions, ``common`` are those of Σ τ_k; the others are shared out equally among the τ_k −
    U Uᵀ τ_k, U the left vectors of the common ones (where they do not divide, the common space takes the rest). The
    concatenated vectors become orthonormal by their polar factors, zero where they have no direction. Other tensors:
    the mean.
    """

    name: ClassVar[str] = "iso_cts"
    source: ClassVar[str] = "Marczak et al. 2025, No task left behind (arXiv 2502.04959), section 4.2"
    unit: ClassVar[Unit] = "tensor"

    common: Share = 0.8
    """The share of directions that are those of Σ τ_k."""
    scale: float = 1.0
    """λ."""

    @classmethod
    def by_part(cls) -> tuple[str, ...]:
        return ("common", "scale")

    @override
    def plan(self, window: Window) -> Callable[[Piece], Array]:
        return lambda piece: self.at(piece)._merged(piece)

    def _merged(self, piece: Piece) -> Array:
        total = piece.vector(0)
        for i in range(1, piece.count):
            total += piece.vector(i)
        if len(piece.shape) != 2:
            return total * (self.scale / piece.count)
        n, like = min(piece.shape), piece.window.device.like
        each = min(round((n - int(n * self.common)) / piece.count), n // piece.count)
        u = np.zeros((piece.shape[0], n), piece.tensor.precision, like=like)
        v = np.zeros((piece.shape[1], n), piece.tensor.precision, like=like)
        length = 0.0
        at = each * piece.count
        rest: Array | None = None
        if piece.shape[0] <= piece.shape[1]:
            shared, values, right, rest = top_and_rest(total, n - at)
        else:
            shared, values, right = top(total, n - at)
        u[:, at : at + len(values)], v[:, at : at + len(values)] = shared, right
        length += float(values.sum())
        for i in range(piece.count if each else 0):
            own = piece.vector(i)
            if rest is None:
                subtract_product(own, shared, product(shared, own))
                left, values, right = top(own, each)
            else:  # few rows
                left, values, right = top(rest.T @ own, each)
                left = rest @ left
            place = slice(i * each, i * each + len(values))
            u[:, place], v[:, place] = left, right
            length += float(values.sum())
        orthonormalize(u)
        orthonormalize(v)
        v *= self.scale * length / n
        merged: Array = u @ v.T
        return merged
