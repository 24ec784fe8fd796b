"""Decompositions of weight matrices through the float64 Gram matrix of the smaller side.

Float32 weights have about seven digits; squared in float64, singular values keep them down to 1e-7 of the largest.
It takes a fraction of the time and of the memory of a full SVD: rows are taken by the thousand, and what can be done in
place is. Directions below that are noise, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tasks.merge.types import Array, Float64

_ROWS = 1024
_NOISE = 1e-7


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


def right_vectors(x: Array) -> tuple[Float64, Float64]:
    """Singular values of a tall matrix (m, n), falling, and its right singular vectors (n, values); without noise."""
    squares, vectors = np.linalg.eigh(gram(x))
    s = np.sqrt(np.maximum(squares[::-1], 0))
    count = int(np.count_nonzero(s > _NOISE * s[0]))
    return s[:count], vectors[:, ::-1][:, :count]


def top(x: Array, most: int) -> tuple[Array, Float64, Array]:
    """U (m, k), s and V (n, k) of the ``most`` largest singular values, fewer where the others are noise."""
    if x.shape[0] < x.shape[1]:
        return top(x.T, most)[::-1]
    s, v = right_vectors(x)
    s, v = s[:most], v[:, :most]
    u: Array = np.matmul(x, (v / s).astype(x.dtype))
    return u, s, v.astype(x.dtype)


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


def _blocks(x: Array) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, x.shape[0], _ROWS))
