"""Decompositions of weight matrices through the float64 Gram matrix of the smaller side.

Float32 weights have about seven digits; squared in float64, singular values keep them down to 1e-7 of the largest.
It takes a fraction of the time and of the memory of a full SVD: rows are taken by the thousand, and what can be done in
place is. Directions below that are noise, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tasks.merge.eigen import largest
from tasks.merge.types import Array, Float64

_ROWS = 1024
_NOISE = 1e-7
_BLOCK = 256
_SINGULAR = 10
"""A pivot below so many roundings, of a matrix with a unit diagonal, is none."""


def product(x: Array, y: Array) -> Float64:
    """XᵀY in float64."""
    total = np.zeros((x.shape[1], y.shape[1]), like=x)
    for rows in _blocks(x):
        total += x[rows].T.astype(np.float64) @ y[rows].astype(np.float64)
    return total


def gram(x: Array) -> Float64:
    """XᵀX in float64."""
    total = np.zeros((x.shape[1], x.shape[1]), like=x)
    for rows in _blocks(x):
        block = x[rows].astype(np.float64)
        total += block.T @ block
    return total


def right_vectors(x: Array, most: int | None = None) -> tuple[Float64, Float64]:
    """Singular values of a tall matrix (m, n), falling, and its right singular vectors (n, values); without noise.

    All of them, or the ``most`` largest.
    """
    most = x.shape[1] if most is None else most
    squares, vectors = largest(gram(x), max(1, most))
    s = np.sqrt(np.maximum(squares, 0))
    count = _count(s, most)
    return s[:count], vectors[:, :count]


def top(x: Array, most: int) -> tuple[Array, Float64, Array]:
    """U (m, k), s and V (n, k) of the ``most`` largest singular values, fewer where the others are noise."""
    if x.shape[0] < x.shape[1]:
        return top(x.T, most)[::-1]
    s, v = right_vectors(x, most)
    return _images(x, s, v), s, v.astype(x.dtype)


def top_and_rest(x: Array, most: int) -> tuple[Array, Float64, Array, Array]:
    """`top` of a matrix that is not tall, and orthonormal vectors (m, m − k) of all that is outside of U."""
    squares, vectors = np.linalg.eigh(gram(x.T))
    s, u = np.sqrt(np.maximum(squares[::-1], 0)), vectors[:, ::-1]
    k = _count(s, most)
    return u[:, :k].astype(x.dtype), s[:k], _images(x.T, s[:k], u[:, :k]), u[:, k:].astype(x.dtype)


def _count(s: Float64, most: int) -> int:
    """How many of the singular values, falling, are wanted and not noise."""
    return min(most, int(np.count_nonzero(s > _NOISE * s[0])))


def _images(x: Array, s: Float64, v: Float64) -> Array:
    """The left singular vectors that belong to right ones."""
    u: Array = np.matmul(x, (v / s).astype(x.dtype))
    return u


def orthonormalize(x: Array) -> Float64:
    """Replace X, in place, by its polar factor: the closest matrix with orthonormal columns (rows where X is wide).

    Zero where X has no direction. Returns all singular values that X had.
    """
    if x.shape[0] < x.shape[1]:
        return orthonormalize(x.T)
    squares, vectors = np.linalg.eigh(gram(x))
    s = np.sqrt(np.maximum(squares, 0))
    if s.size and s[-1] > 0:
        inverse = (s > _NOISE * s[-1]) / np.maximum(s, _NOISE * s[-1])  # CuPy's functions know no where=
        multiply(x, (vectors * inverse) @ vectors.T)
    return s


def multiply(x: Array, by: Float64) -> None:
    """X ← X B in place, for a square B."""
    factor = by.astype(x.dtype)
    for rows in _blocks(x):
        x[rows] = x[rows] @ factor


def subtract_product(x: Array, y: Array, by: Float64) -> None:
    """X ← X − Y B in place."""
    factor = by.astype(x.dtype)
    for rows in _blocks(x):
        x[rows] -= y[rows] @ factor


def solve(system: Float64, right: Array, noise: float) -> Float64:
    """Y (n, m) with S Y = B, S (n, n) symmetric and positive semidefinite; ``system`` is used up.

    Where S is singular, Y is zero along the directions that S does not know, as with a vanishing ridge: those whose
    eigenvalues are below n · ``noise`` of the largest.
    """
    result = np.zeros(right.shape, like=system)
    known = np.diagonal(system) > 0
    if not known.all():
        if known.any():
            result[known] = solve(system[known][:, known], right[known], noise)
        return result
    length = np.sqrt(np.diagonal(system))
    factor = _cholesky(system / length[:, None] / length)
    if factor is not None and float(np.diagonal(factor).min()) ** 2 > _SINGULAR * noise:
        result[...] = right / length[:, None]
        _substitute(factor, result)
        result /= length[:, None]
        return result
    values, vectors = np.linalg.eigh(system)
    kept = values > len(values) * noise * values[-1]
    vectors = vectors[:, kept]
    projected: Float64 = (vectors / values[kept]) @ (vectors.T @ right.astype(np.float64))
    return projected


def _cholesky(system: Float64) -> Float64 | None:
    """L with L Lᵀ = S; None where S is not positive definite."""
    try:
        factor = np.linalg.cholesky(system).astype(np.float64, copy=False)
    except np.linalg.LinAlgError:
        return None
    return factor if np.isfinite(np.diagonal(factor)).all() else None  # CuPy raises nothing


def _substitute(factor: Float64, x: Float64) -> None:
    """X ← (L Lᵀ)⁻¹ X in place, by blocks.

    Those on the diagonal are inverted: a product with X takes a third of the time of a solution for X.
    """
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(factor), _BLOCK)]
    inverses = [np.linalg.inv(factor[at, at]) for at in blocks]
    for at, inverse in zip(blocks, inverses, strict=True):
        x[at] = inverse @ (x[at] - factor[at, : at.start] @ x[: at.start])
    for at, inverse in zip(blocks[::-1], inverses[::-1], strict=True):
        x[at] = inverse.T @ (x[at] - factor[at.stop :, at].T @ x[at.stop :])


def _blocks(x: Array) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, x.shape[0], _ROWS))
