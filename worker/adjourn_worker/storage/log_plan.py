"""PURE. Which part of a training process's log is stored next, and when.

Stored is what the worker keeps too: the first half of the limit, and the newest half. What lies between may be read as
zeros, for the launcher gives it back to the disk (`attempt/training_log.py`).
"""

from collections.abc import Sequence
from typing import Final

from adjourn.stored_logs import SEGMENT_BYTES, Segment

SOON_SECONDS: Final = 1.0
"""Between two parts of a log that somebody follows."""
RARE_SECONDS: Final = 10.0
"""Between two parts of a log that nobody follows."""


def is_due(waiting: int, seconds: float, *, followed: bool, over: bool) -> bool:
    """Returns whether bytes that wait are stored now. `seconds`: since something of the log was stored last."""
    if waiting <= 0:
        return False
    return over or waiting >= SEGMENT_BYTES or seconds >= (SOON_SECONDS if followed else RARE_SECONDS)


def next_part(stored: Sequence[Segment], size: int, limit: int, *, readable_from: int = 0) -> Segment | None:
    """Returns the part of a log of `size` bytes to store next; None: all is stored.

    It begins where the last one that is stored does, and takes its place, while that one is not full. `readable_from`:
    bytes before this cannot be read any more.
    """
    half, done = limit // 2, max((segment.end for segment in stored), default=0)
    if size <= done:
        return None
    begin = done if done < half else max(done, first_kept(size, limit))
    end = min(begin + SEGMENT_BYTES, size)
    last = max(stored, key=lambda each: each.end, default=None)
    if last is not None and begin == done and last.size < SEGMENT_BYTES:
        grown = Segment(last.begin, min(last.begin + SEGMENT_BYTES, size))
        same_half = (grown.begin < half) == (begin < half)
        if same_half and grown.begin >= readable_from and is_intact(grown, size, limit):
            begin, end = grown.begin, grown.end
    return Segment(begin, min(end, half) if begin < half else end)


def is_intact(part: Segment, size: int, limit: int) -> bool:
    """Returns whether a part that was read is what was printed. `size`: of the log, looked at after that."""
    return part.begin < limit // 2 or part.begin >= first_kept(size, limit)


def first_kept(size: int, limit: int) -> int:
    """Returns where the newest half begins."""
    return size - limit // 2 if size > limit else 0


def superseded(stored: Sequence[Segment], part: Segment) -> list[Segment]:
    """Returns what needs not be stored any more once a part is."""
    return [each for each in stored if part.begin <= each.begin and each.end <= part.end and each != part]


def beyond_limit(stored: Sequence[Segment], limit: int) -> list[Segment]:
    """Returns what lies between the first and the newest half."""
    newest = max((segment.end for segment in stored), default=0)
    return [each for each in stored if each.begin >= limit // 2 and each.end <= first_kept(newest, limit)]
