"""PURE. What a job becomes when its worker is to become empty, and when it may stay after all.

A drained job pauses without a hold. Once its checkpoint is registered it is QUEUED again, and goes on elsewhere. Its
pause has the cause DRAINED for as long as the order stands, whether or not somebody also holds the job meanwhile.
"""

from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.job_pb2 import Job, Pause, PauseMode
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import pauses
from adjourn_control_plane.job.events import DrainRequested, DrainWithdrawn
from adjourn_control_plane.job.transition import Transition


def under_way(job: Job) -> bool:
    """Returns whether a job is on its way to a boundary because its worker is to become empty."""
    return job.state == Job.PAUSING and job.pause.cause == Pause.DRAINED


def drain_requested(transition: Transition, event: DrainRequested) -> None:
    """Sends a job that trains to its boundary. A task without epochs has none, and stays to its end."""
    record, job = transition.record, transition.job
    if job.spec.total_epochs == 0:
        return
    pauses.request(record, mode=PauseMode.EPOCH, actor=event.actor, reason=event.reason, now=transition.now)
    job.pause.cause = Pause.DRAINED
    record.pause_mode = PauseMode.EPOCH
    transition.set_target(Assignment.PAUSE)
    transition.set_state(Job.PAUSING, JobEvent.DRAIN_REQUESTED, event.reason)


def drain_withdrawn(transition: Transition, _event: DrainWithdrawn) -> None:
    """Lets a job train on where it is, unless it is held too or has left already."""
    record, job = transition.record, transition.job
    if not under_way(job):
        return
    if job.holds:
        job.pause.cause = Pause.HELD
        transition.revised = True
    elif not pauses.has_left(record):
        job.pause.resume_request_time.FromDatetime(transition.now)
        pauses.take_back(transition, JobEvent.DRAIN_WITHDRAWN, "the drain was taken back before the boundary")
