"""What a job says while its training waits for data."""

from adjourn import reasons
from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.v1.agent_service_pb2 import ConditionChange
from adjourn.v1.job_pb2 import Condition
from adjourn_worker.data.course import Course
from adjourn_worker.data.waiting import Waiting

URI = "s3://bucket/key"


class Told:
    def __init__(self, held: HeldAssignment | None = None) -> None:
        self.changes: list[ConditionChange] = []
        self.now = 100.0
        self.waiting = Waiting(held or HeldAssignment(), self.changes.append, lambda: self.now)

    def hear(self, after: float, **course: object) -> list[str]:
        """Returns what is told of a look that comes so much later."""
        self.now += after
        before = len(self.changes)
        self.waiting.hear(Course(shown=URI, **course))  # type: ignore[arg-type]
        return [change.condition.message for change in self.changes[before:]]


def test_what_is_here_soon_is_not_told() -> None:
    told = Told()
    assert told.hear(0) == told.hear(1.9, done=5, total=10) == []
    told.waiting.end()
    assert told.changes == []


def test_each_tenth_is_told_and_not_more_often_than_every_five_seconds() -> None:
    told = Told()
    told.hear(0)
    assert told.hear(2, done=1_000_000, total=10_000_000) == [f"training waits for {URI}: 10 % of 10.0 MB have arrived"]
    assert told.hear(5, done=1_900_000, total=10_000_000) == []
    assert told.hear(0, done=2_000_000, total=10_000_000) == [f"training waits for {URI}: 20 % of 10.0 MB have arrived"]
    assert told.hear(4.9, done=9_000_000, total=10_000_000) == []
    told.waiting.end()
    told.waiting.end()
    assert [(change.condition.type, change.ended) for change in told.changes] == [
        (Condition.FETCHING_DATA, False),
        (Condition.FETCHING_DATA, False),
        (Condition.FETCHING_DATA, True),
    ]


def test_a_source_that_is_away_is_told_with_its_reason() -> None:
    told = Told()
    told.hear(0)
    told.hear(3, done=1)
    assert told.hear(0, done=1, unavailable="it is gone") == [
        f"training waits for {URI}, and nothing comes: it is gone"
    ]
    assert told.hear(9, done=1, unavailable="it is gone still") == []
    assert told.hear(0, done=2_000) == [f"training waits for {URI}: 2.0 kB have arrived"]
    assert [change.condition.reason for change in told.changes] == [
        reasons.DATA_FETCHING,
        reasons.DATA_UNAVAILABLE,
        reasons.DATA_FETCHING,
    ]


def test_what_an_earlier_agent_has_told_ends() -> None:
    held = HeldAssignment()
    held.conditions.add(type=Condition.FETCHING_DATA, reason=reasons.DATA_FETCHING)
    told = Told(held)
    assert told.hear(0, done=5, total=10), "it is known to wait"
    told.waiting.end()
    assert told.changes[-1].ended
