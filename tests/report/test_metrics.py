"""ACC, BWT, FWT and forgetting against sums done by hand, and what must hold of any accuracies."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tasks.report import metrics

# Three arrivals at steps 1, 2, 3; row 0 is the base.
HAND = np.array([
    [10.0, 20.0, 30.0],
    [50.0, 22.0, 30.0],
    [40.0, 60.0, 33.0],
    [44.0, 55.0, 70.0],
])  # fmt: skip
ARRIVED = np.array([1, 2, 3])


def test_average_accuracy_by_hand() -> None:
    assert metrics.average_accuracy(HAND, ARRIVED) == pytest.approx(
        [math.nan, 50.0, (40 + 60) / 2, (44 + 55 + 70) / 3], nan_ok=True
    )


def test_backward_transfer_by_hand() -> None:
    assert metrics.backward_transfer(HAND, ARRIVED) == pytest.approx(
        [math.nan, math.nan, 40 - 50, ((44 - 50) + (55 - 60)) / 2], nan_ok=True
    )


def test_forward_transfer_by_hand() -> None:
    assert metrics.forward_transfer(HAND, ARRIVED) == pytest.approx(
        [math.nan, math.nan, 22 - 20, ((22 - 20) + (33 - 30)) / 2], nan_ok=True
    )


def test_transfer_average_and_last_by_hand() -> None:
    """MTIL's: over the steps before a data set arrives, each set once; over all steps; after the last."""
    assert metrics.transfer(HAND, ARRIVED) == pytest.approx(
        [math.nan, (22 + 30) / 2, (22 + (30 + 33) / 2) / 2, (22 + (30 + 33) / 2) / 2], nan_ok=True
    )
    rows = [(50 + 22 + 30) / 3, (40 + 60 + 33) / 3, (44 + 55 + 70) / 3]
    assert metrics.last(HAND, ARRIVED) == pytest.approx([math.nan, *rows], nan_ok=True)
    assert metrics.average(HAND, ARRIVED) == pytest.approx(
        [math.nan, rows[0], sum(rows[:2]) / 2, sum(rows) / 3], nan_ok=True
    )


def test_normalized_accuracy_is_a_mean_of_ratios_without_sets_that_do_not_count() -> None:
    accuracy = np.array([[81.0, 76.0, 5.0]])
    reference = np.array([90.0, 80.0, 1.0])
    assert metrics.normalized(accuracy, reference, np.array([True, True, False])) == pytest.approx([92.5])
    assert metrics.normalized(accuracy, reference, np.array([False] * 3)) == pytest.approx([math.nan], nan_ok=True)


def test_forgetting_is_from_the_best_that_was() -> None:
    recovered = HAND.copy()
    recovered[2, 0] = 58.0  # better at step 2 than when it arrived
    assert metrics.forgetting(recovered, ARRIVED) == pytest.approx(
        [math.nan, math.nan, 50 - 58, ((58 - 44) + (60 - 55)) / 2], nan_ok=True
    )


def test_arrivals_without_a_data_set_take_no_part() -> None:
    """The second arrival has no data set of its name: columns are the first's and the third's."""
    part, arrived = HAND[:, [0, 2]], np.array([1, 3])
    assert metrics.average_accuracy(part, arrived) == pytest.approx([math.nan, 50, 40, 57], nan_ok=True)
    assert metrics.backward_transfer(part, arrived) == pytest.approx([math.nan, math.nan, -10, -6], nan_ok=True)


def test_a_data_set_that_was_not_measured_at_a_step_takes_no_part_there() -> None:
    gap = HAND.copy()
    gap[3, 1] = math.nan
    assert metrics.average_accuracy(gap, ARRIVED)[3] == pytest.approx((44 + 70) / 2)
    assert metrics.backward_transfer(gap, ARRIVED)[3] == pytest.approx(44 - 50)


@st.composite
def streams(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    length = draw(st.integers(1, 6))
    accuracy = draw(arrays(np.float64, (length + 1, length), elements=st.floats(0, 100)))
    return accuracy, np.arange(1, length + 1)


@given(streams())
def test_forgetting_is_never_less_than_what_backward_transfer_lost(stream: tuple[np.ndarray, np.ndarray]) -> None:
    lost, transferred = metrics.forgetting(*stream), metrics.backward_transfer(*stream)
    defined = np.isfinite(transferred)
    assert (np.isfinite(lost) == defined).all()
    assert (lost[defined] >= -transferred[defined] - 1e-9).all()


@given(streams(), st.floats(-50, 50))
def test_only_the_average_sees_a_constant(stream: tuple[np.ndarray, np.ndarray], shift: float) -> None:
    accuracy, arrived = stream
    for name in ("backward_transfer", "forward_transfer", "forgetting"):
        function = getattr(metrics, name)
        assert function(accuracy + shift, arrived) == pytest.approx(function(accuracy, arrived), abs=1e-9, nan_ok=True)
    moved = metrics.average_accuracy(accuracy, arrived) + shift
    assert metrics.average_accuracy(accuracy + shift, arrived) == pytest.approx(moved, abs=1e-9, nan_ok=True)


@given(streams())
def test_a_model_that_never_changes_transfers_and_forgets_nothing(stream: tuple[np.ndarray, np.ndarray]) -> None:
    accuracy, arrived = stream
    still = np.repeat(accuracy[:1], len(accuracy), axis=0)
    for name in ("backward_transfer", "forward_transfer", "forgetting"):
        values = getattr(metrics, name)(still, arrived)
        assert (values[np.isfinite(values)] == 0).all()


def test_intervals_by_hand() -> None:
    """1, 2, 3: mean 2, standard deviation 1, and t with 2 degrees of freedom is 4.3027."""
    assert metrics.mean_and_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.3027 / math.sqrt(3)), rel=1e-4)


def test_one_seed_has_no_interval() -> None:
    mean, half = metrics.mean_and_interval([5.0])
    assert mean == 5.0
    assert math.isnan(half)


@given(st.integers(1, 500))
def test_the_quantile_holds_95_percent(freedom: int) -> None:
    """Student's distribution in closed form (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    odd = freedom % 2
    angle = math.atan(metrics.t_quantile(freedom) / math.sqrt(freedom))
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    within = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    assert within == pytest.approx(0.95, abs=1e-5)


def test_the_quantile_needs_a_degree_of_freedom() -> None:
    with pytest.raises(ValueError, match="needs a degree of freedom"):
        metrics.t_quantile(0)
