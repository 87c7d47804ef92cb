"""PURE. What a job says while its training waits for data: the condition FETCHING_DATA."""

from collections.abc import Callable
from typing import Final

from adjourn import reasons
from adjourn.data_identities import in_words
from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.v1.agent_service_pb2 import ConditionChange
from adjourn.v1.job_pb2 import Condition
from adjourn_worker.data.course import Course

SHOWN_SECONDS: Final = 2.0
"""How long data is waited for before the job says so."""
AGAIN_SECONDS: Final = 5.0
"""Least time between two words on how much has arrived; a tenth more has to be there."""


class Waiting:
    """Tells of what the training of one attempt waits for."""

    def __init__(
        self, held: HeldAssignment, on_condition: Callable[[ConditionChange], None], clock: Callable[[], float]
    ) -> None:
        self._on_condition = on_condition
        self._clock = clock
        told = next((each for each in held.conditions if each.type == Condition.FETCHING_DATA), None)
        self._reason = told.reason if told else ""
        """That was told; an earlier agent may have begun what ends here."""
        self._since: float | None = None
        self._told_at = 0.0
        self._tenth = -1

    def hear(self, course: Course) -> None:
        now = self._clock()
        self._since = now if self._since is None else self._since
        if not self._reason and now - self._since < SHOWN_SECONDS:
            return
        reason = reasons.DATA_UNAVAILABLE if course.unavailable else reasons.DATA_FETCHING
        tenth = 10 * course.done // course.total if course.total else -1
        more = tenth != self._tenth and now - self._told_at >= AGAIN_SECONDS
        if reason != self._reason or (more and not course.unavailable):
            self._reason, self._told_at, self._tenth = reason, now, tenth
            condition = Condition(type=Condition.FETCHING_DATA, reason=reason, message=words(course))
            self._on_condition(ConditionChange(condition=condition))

    def end(self) -> None:
        """Nothing is waited for any more."""
        self._since, self._tenth = None, -1
        if self._reason:
            self._reason = ""
            ended = ConditionChange(condition=Condition(type=Condition.FETCHING_DATA), ended=True)
            self._on_condition(ended)


def words(course: Course) -> str:
    if course.unavailable:
        return f"training waits for {course.shown}, and nothing comes: {course.unavailable}"
    if not course.total:
        return f"training waits for {course.shown}: {in_words(course.done)} have arrived"
    share = 100 * course.done // course.total
    return f"training waits for {course.shown}: {share} % of {in_words(course.total)} have arrived"
