"""The arithmetic of continual learning's metrics, and of means over seeds; plain functions on arrays.

``accuracy`` is a matrix a of shape (T + 1, N), in percent: a[t, i] is the deployed model of step t on the data set of
arrival i, a[0] that of the base; NaN where it was not measured. ``arrived`` is an integer array of shape (N,): the step
at which arrival i came, 1 to T. Each function gives one value for every step, shape (T + 1,), NaN where there is none.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]


def average_accuracy(accuracy: Values, arrived: NDArray[np.int64]) -> Values:
    """ACC_t: the mean of a[t, i] over the arrivals up to step t.

    At the last step it is ACC as OPCM defines it (arXiv 2501.09522), and GEM before (Lopez-Paz and Ranzato, 2017,
    arXiv 1706.08840).
    """
    seen = arrived[None, :] <= _steps(accuracy)[:, None]
    return _mean(np.where(seen, accuracy, np.nan))


def backward_transfer(accuracy: Values, arrived: NDArray[np.int64]) -> Values:
    """BWT_t: the mean of a[t, i] − a[s_i, i] over the arrivals i of steps s_i before t; negative is forgetting.

    At the last step 1/(T−1) Σ_{i<T} (a[T, i] − a[i, i]), as OPCM and Lopez-Paz and Ranzato (2017) define it.
    """
    learned = accuracy[arrived, np.arange(len(arrived))]
    before = arrived[None, :] < _steps(accuracy)[:, None]
    return _mean(np.where(before, accuracy - learned, np.nan))


def forward_transfer(accuracy: Values, arrived: NDArray[np.int64]) -> Values:
    """FWT_t: the mean of a[s_i − 1, i] − a[0, i] over the arrivals i of steps 2 to t.

    What earlier steps did for a data set just before it arrives. Lopez-Paz and Ranzato (2017), with the base in the
    place of their random initialization.
    """
    gained = accuracy[arrived - 1, np.arange(len(arrived))] - accuracy[0]
    later = (arrived[None, :] >= 2) & (arrived[None, :] <= _steps(accuracy)[:, None])
    return _mean(np.where(later, gained, np.nan))


def forgetting(accuracy: Values, arrived: NDArray[np.int64]) -> Values:
    """F_t: the mean over the arrivals i before step t of max_{1≤l<t} a[l, i] − a[t, i].

    From the best that any earlier step reached, where BWT compares with the step at which it arrived (Chaudhry et al.,
    2018, arXiv 1801.10112, section 3); negative where the newest model is the best yet.
    """
    best = np.full_like(accuracy, np.nan)
    if len(accuracy) > 2:
        best[2:] = np.fmax.accumulate(accuracy[1:-1])
    before = arrived[None, :] < _steps(accuracy)[:, None]
    return _mean(np.where(before, best - accuracy, np.nan))


def transfer(accuracy: Values, arrived: NDArray[np.int64]) -> Values:
    """Transfer_t: the mean over the arrivals i of steps 2 on of the mean of a[l, i] over steps 1 ≤ l ≤ t before s_i.

    What is known of data sets that have not arrived yet; each data set counts once (MTIL: Zheng et al., 2023, arXiv
    2303.06628, section 5.1).
    """
    step = np.arange(len(accuracy))[:, None]
    before = np.where((step >= 1) & (step < arrived[None, :]), accuracy, np.nan)
    finite = np.isfinite(before)
    count, total = finite.cumsum(axis=0), np.where(finite, before, 0.0).cumsum(axis=0)
    return _mean(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))


def average(accuracy: Values, arrived: NDArray[np.int64]) -> Values:
    """Average_t: the mean over steps 1 to t of Last (MTIL)."""
    each = last(accuracy, arrived)
    finite = np.isfinite(each)
    count, total = finite.cumsum(), np.where(finite, each, 0.0).cumsum()
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def last(accuracy: Values, arrived: NDArray[np.int64]) -> Values:  # noqa: ARG001 - all arrivals, past and to come
    """Last_t: the mean of a[t, i] over all arrivals of the stream, 1 to N, after step t ≥ 1 (MTIL)."""
    means = _mean(accuracy)
    means[0] = np.nan
    return means


def normalized(accuracy: Values, reference: Values, counted: NDArray[np.bool_]) -> Values:
    """The mean ratio of a model's accuracy to a reference's, as a percentage, over the sets that count.

    ``accuracy`` has shape (T + 1, N), ``reference`` too or (N,), and ``counted`` as well: where the reference is barely
    above chance a ratio says nothing (Yadav et al., 2024, arXiv 2410.03617: held-in accuracy is divided by each task's
    own expert's, held-out by the base's).
    """
    usable = counted & np.isfinite(reference) & (reference > 0)
    ratio = np.divide(accuracy, reference, out=np.full_like(accuracy, np.nan), where=usable)
    return _mean(100 * ratio)


def _steps(accuracy: Values) -> NDArray[np.int64]:
    return np.arange(len(accuracy))


def _mean(terms: Values) -> Values:
    """The mean of the finite terms of each row; NaN for a row without any."""
    finite = np.isfinite(terms)
    count = finite.sum(axis=1)
    total = np.where(finite, terms, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(terms), np.nan), where=count > 0)


LEVEL = 0.95
"""Of every interval in the report."""

_T = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
"""Student's t: the two-sided 95 % quantile for 1 to 30 degrees of freedom."""


def t_quantile(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t, to 1e-4.

    From a table up to 30 degrees of freedom, then by the normal quantile's expansion (Abramowitz and Stegun, 26.7.5).

    Raises:
        ValueError: no degree of freedom.
    """
    if freedom < 1:
        raise ValueError(f"Student's t needs a degree of freedom, not {freedom}")
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def mean_and_interval(values: ArrayLike) -> tuple[float, float]:
    """The mean of a sample, and half the width of its 95 % interval (Student's t); NaN for a sample of one."""
    sample = np.asarray(values, np.float64)
    mean = float(sample.mean())
    if sample.size < 2:
        return mean, math.nan
    return mean, t_quantile(sample.size - 1) * float(sample.std(ddof=1)) / math.sqrt(sample.size)
