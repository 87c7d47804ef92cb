"""The keys of what attempts have printed, and how they are read."""

import pytest

from adjourn.stored_logs import Segment, StoredLog, attempt_prefix, end_key, log_prefix, segment_key, stored_log
from adjourn.v1.agent_service_pb2 import FencingToken

UID = "0b0fa75e-5a4d-4d59-8b40-a4f0f1b1a3c5"
PREFIX = log_prefix(FencingToken(attempt=2, nonce="89abcdef" * 4, job_uid=UID))


def test_keys_are_in_the_order_of_what_was_printed() -> None:
    assert f"{attempt_prefix(UID, 2)}89abcdef/" == PREFIX
    segments = [Segment(0, 9), Segment(9, 10), Segment(10, 2_000_000), Segment(2_000_000, 10**15)]
    keys = [segment_key(PREFIX, segment) for segment in segments]
    assert sorted(keys) == keys
    assert stored_log(PREFIX, reversed(keys)) == StoredLog(tuple(segments), None)
    whole = stored_log(PREFIX, [*keys, end_key(PREFIX, 10**15)])
    assert (whole.end, whole.size, whole.stored) == (10**15, 10**15, 10**15)


def test_what_is_not_of_the_log_is_passed_over() -> None:
    others = [f"{PREFIX}x", f"{PREFIX}{0:016}-{0:016}", segment_key("logs/other/000001-01234567/", Segment(0, 1))]
    assert stored_log(PREFIX, others) == StoredLog()
    assert StoredLog().after(0) is None


@pytest.mark.parametrize(
    ("offset", "found"),
    [
        (0, Segment(0, 4)),
        (3, Segment(0, 4)),
        (4, Segment(4, 9)),  # two begin there: the one that reaches further
        (6, Segment(4, 9)),
        (9, Segment(20, 25)),  # the next one behind the gap
        (12, Segment(20, 25)),
        (25, None),
        (99, None),
    ],
)
def test_how_to_go_on_at_a_byte(offset: int, found: Segment | None) -> None:
    log = StoredLog((Segment(0, 4), Segment(4, 6), Segment(4, 9), Segment(20, 25)))
    assert log.after(offset) == found
