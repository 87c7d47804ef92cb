"""A job as its history tells it: whoever replays `ListJobEvents` knows what the record says."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Condition, Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job.transition import kinds_of_holds


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the history of a job tells of it."""

    state: Job.State.ValueType = Job.STATE_UNSPECIFIED
    attempt: int = 0
    holds: str = ""
    checkpoint: str = ""
    """The newest."""
    conditions: Mapping[str, str] = field(default_factory=dict)
    """The reason of each that holds, by type."""

    @classmethod
    def of(cls, record: JobRecord) -> Self:
        """Returns what a history has to tell of a record."""
        return cls(
            state=record.job.state,
            attempt=record.job.attempt,
            holds=kinds_of_holds(record.job),
            checkpoint=record.job.latest_checkpoint,
            conditions={Condition.Type.Name(each.type): each.reason for each in record.job.conditions},
        )

    def after(self, events: Iterable[JobEvent]) -> Self:
        """Returns what is told once these events, too, are known."""
        told = self
        for event in events:
            details = event.details
            conditions = dict(told.conditions)
            if event.type == JobEvent.CONDITION_BEGAN:
                conditions[details["condition"]] = details["reason"]
            if event.type == JobEvent.CONDITION_ENDED:
                del conditions[details["condition"]]
            told = replace(
                told,
                state=event.state,
                attempt=event.attempt,
                holds=details.get("holds", told.holds),
                checkpoint=details.get("checkpoint", told.checkpoint),
                conditions=conditions,
            )
        return told
