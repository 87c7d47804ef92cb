"""PURE. Series of points, thinned to a number of them that are evenly spread."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def thinned(points: Sequence[T], count: int, at: Callable[[T], float]) -> list[T]:
    """Returns up to `count` points, in order: of as many equal intervals, the last point in each.

    `at` says where a point is; they are given in order. The last one is always kept. Raises ValueError for a `count`
    below 1.
    """
    if count < 1:
        raise ValueError(f"at least one point is kept; count is {count}")
    if len(points) <= count:
        return list(points)
    first, span = at(points[0]), at(points[-1]) - at(points[0])
    intervals = [min(int((at(point) - first) * count / span), count - 1) if span else 0 for point in points]
    return [
        point
        for place, point in enumerate(points)
        if place + 1 == len(points) or intervals[place + 1] != intervals[place]
    ]
