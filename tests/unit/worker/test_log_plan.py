"""Which part of a log is stored next, and when."""

import pytest

from adjourn.stored_logs import SEGMENT_BYTES, Segment
from adjourn_worker.storage.log_plan import beyond_limit, is_due, is_intact, next_part, superseded

FULL = SEGMENT_BYTES
LIMIT = 8 * FULL
HALF = LIMIT // 2


@pytest.mark.parametrize(
    ("waiting", "seconds", "followed", "over", "due"),
    [
        (0, 1000.0, True, True, False),
        (1, 0.5, True, False, False),
        (1, 1.0, True, False, True),
        (1, 9.0, False, False, False),
        (1, 10.0, False, False, True),
        (FULL, 0.0, False, False, True),
        (1, 0.0, False, True, True),
    ],
)
def test_when_bytes_are_stored(*, waiting: int, seconds: float, followed: bool, over: bool, due: bool) -> None:
    assert is_due(waiting, seconds, followed=followed, over=over) == due


@pytest.mark.parametrize(
    ("stored", "size", "part"),
    [
        ([], 0, None),
        ([], 10, Segment(0, 10)),
        ([Segment(0, 10)], 10, None),
        ([Segment(0, 10)], 30, Segment(0, 30)),  # it grows while it is not full
        ([Segment(0, 10)], FULL + 5, Segment(0, FULL)),
        ([Segment(0, FULL)], FULL + 5, Segment(FULL, FULL + 5)),
        ([Segment(0, HALF - 5)], HALF + 9, Segment(HALF - 5, HALF)),  # no part is in both halves
        ([Segment(HALF - 5, HALF)], HALF + 9, Segment(HALF, HALF + 9)),
        ([Segment(0, HALF)], 5 * LIMIT, Segment(5 * LIMIT - HALF, 5 * LIMIT - HALF + FULL)),  # the middle is left out
        ([Segment(HALF, HALF + 5)], LIMIT + 9, Segment(HALF + 9, HALF + 9 + FULL)),  # its beginning is gone by now
        ([Segment(0, 5)], 5 * LIMIT, Segment(0, FULL)),  # the first half is kept for ever
    ],
)
def test_what_is_stored_next(stored: list[Segment], size: int, part: Segment | None) -> None:
    assert next_part(stored, size, LIMIT) == part


def test_what_was_cut_back_is_not_read_again() -> None:
    assert next_part([Segment(0, 10)], 30, LIMIT, readable_from=10) == Segment(10, 30)


def test_a_part_is_intact_if_nothing_of_it_was_given_back_to_the_disk() -> None:
    assert is_intact(Segment(HALF - 5, HALF), 9 * LIMIT, LIMIT)
    assert is_intact(Segment(HALF, HALF + 5), LIMIT, LIMIT)
    assert not is_intact(Segment(HALF, HALF + 5), LIMIT + 1, LIMIT)
    assert is_intact(Segment(HALF + 1, HALF + 5), LIMIT + 1, LIMIT)


def test_what_needs_not_be_stored_any_more() -> None:
    stored = [Segment(0, 10), Segment(HALF, HALF + FULL), Segment(HALF + FULL, HALF + 2 * FULL)]
    assert superseded(stored, Segment(0, 30)) == [Segment(0, 10)]
    assert superseded(stored, Segment(0, 10)) == []
    assert beyond_limit(stored, LIMIT) == []
    newest = Segment(LIMIT + FULL - 1, LIMIT + FULL)
    assert beyond_limit([*stored, newest], LIMIT) == [Segment(HALF, HALF + FULL)]
