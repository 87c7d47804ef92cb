"""PURE. The events that a worker's reports tell of."""

from adjourn import reasons
from adjourn.v1.agent_service_pb2 import AssignmentStatus, Exit, Report
from adjourn.v1.job_pb2 import Failure
from adjourn_control_plane.job.events import (
    CheckpointDamaged,
    ConditionChanged,
    EpochEnded,
    Event,
    Failed,
    Finished,
    PausePhase,
    Registered,
    Rested,
    Stopped,
)


def event_of_report(report: Report, worker: str) -> Event | None:
    """Returns the event that a report tells of; None for a kind that this version does not know."""
    match report.WhichOneof("report"):
        case "epoch":
            return EpochEnded(actor=worker, metrics=report.epoch)
        case "checkpoint":
            return Registered(actor=worker, checkpoint=report.checkpoint)
        case "pause":
            return PausePhase(actor=worker, pause=report.pause)
        case "condition":
            return ConditionChanged(actor=worker, condition=report.condition.condition, ended=report.condition.ended)
        case "exit":
            return ended(report.exit, worker)
        case _:
            return None


def ended(how: Exit, worker: str) -> Event:
    """Returns the event for the end of an attempt."""
    failure = how.failure if how.HasField("failure") else None
    if how.phase == AssignmentStatus.PAUSED:
        return Rested(actor=worker, checkpoint=how.checkpoint, failure=failure)
    if how.phase == AssignmentStatus.SUCCEEDED:
        return Finished(actor=worker, checkpoint=how.checkpoint)
    if how.phase == AssignmentStatus.STOPPED:
        return Stopped(actor=worker, failure=failure)
    if failure is not None and failure.reason == reasons.CHECKPOINT_CORRUPT and how.checkpoint:
        return CheckpointDamaged(actor=worker, failure=failure, checkpoint=how.checkpoint)
    return Failed(actor=worker, failure=failure or Failure(reason=reasons.PROCESS_ENDED, message="no reason given"))
