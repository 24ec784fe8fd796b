"""Labels are moved apart no further than needed."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.report.figures.labels import spread, to_the_left


def test_labels_that_have_room_stay_where_they_belong() -> None:
    assert spread([3, 1, 2], 0.5, 0, 4) == [3, 1, 2]


def test_two_equal_labels_move_half_the_gap_each() -> None:
    assert spread([2, 2], 1, 0, 4) == [1.5, 2.5]


def test_labels_at_the_edge_move_inwards() -> None:
    assert spread([4, 4, 4], 1, 0, 4) == [2, 3, 4]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12), st.floats(0.1, 20))
def test_labels_keep_their_gap_their_order_and_the_panel(values: list[float], gap: float) -> None:
    places = spread(values, gap, 0, 100)
    fitting = min(gap, 100 / max(len(values) - 1, 1))
    ordered = sorted(range(len(values)), key=lambda i: (values[i], i))
    for before, after in pairwise(ordered):
        assert places[after] - places[before] >= fitting - 1e-9
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in places)


def test_too_many_labels_share_the_panel_evenly() -> None:
    assert spread([1] * 5, 10, 0, 4) == pytest.approx([0, 1, 2, 3, 4])


def test_a_label_stands_where_it_lies_on_no_other_point_and_does_not_leave_the_panel() -> None:
    ends = [20.0, 20.0, 21.0, 50.0, 50.0, 50.0]
    x = [0.5, 0.55, 0.97, 0.7, 0.75, 0.8]
    # The first's right is taken by the second; the third would leave; of three in a row the one in the middle has none
    # free, and stands to the right.
    assert to_the_left(x, ends, ends, 0.12, 5) == [True, False, True, True, False, False]
    assert to_the_left(x, [20.0, 30.0, 21.0, 40.0, 50.0, 60.0], ends, 0.12, 5)[0]
    assert to_the_left([], [], [], 0.12, 5) == []
