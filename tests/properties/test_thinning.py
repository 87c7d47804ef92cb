"""Series are thinned to a number of points that are evenly spread."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.series import thinned

POINTS = st.lists(st.floats(-1e12, 1e12), max_size=60).map(sorted)


@given(points=POINTS, count=st.integers(1, 40))
def test_as_many_as_asked_for_in_order_and_the_last_one(points: list[float], count: int) -> None:
    kept = thinned(points, count, float)
    assert len(kept) <= count
    assert kept == sorted(kept)
    assert set(kept) <= set(points)
    assert kept[-1:] == points[-1:]
    if len(points) <= count:
        assert kept == points


@given(points=POINTS, count=st.integers(1, 40))
def test_no_gap_is_wider_than_two_intervals_and_the_widest_gap_there_was(points: list[float], count: int) -> None:
    kept = thinned(points, count, float)
    if len(kept) > 1:
        widest = max(later - earlier for earlier, later in pairwise(points))
        interval = (points[-1] - points[0]) / count
        gaps = [later - earlier for earlier, later in pairwise(kept)]
        assert max(gaps) <= (widest + 2 * interval) * (1 + 1e-9) + 1e-3


def test_no_point_is_not_a_number_to_thin_to() -> None:
    with pytest.raises(ValueError, match="count is 0"):
        thinned([1, 2], 0, float)
