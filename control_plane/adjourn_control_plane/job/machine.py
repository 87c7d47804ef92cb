"""PURE. The job machine: the whole life of a job, and everything that may change its state.

Theory of operation. A job is a JobRecord. What happens to it is an Event. `decide(record, event, now)` returns a
Decision: the record as it then is, and what is stored with it. It does not change the record it is given, reads no
clock and does no IO. The caller commits the decision by compare-and-set; on a conflict it reads and decides again.

TRANSITIONS is the specification: for a state and an event, the states that may follow, the usual one first. Which of
them it is depends on the record (holds, checkpoint, budget), and is decided in `requests.py`, `attempts.py` and
`lost_attempts.py`. An event that the table does not have for a state is an error if a caller asked for it; the error
names the state and the states that allow it. If a worker told of it, it comes too late and nothing follows.

While a job rests, waits or has failed after its attempt was lost, the attempt may still be heard of. Those rows are
below, in a block of their own; `lost_attempts.py` says which records they apply to.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import attempts, damage, drains, lost_attempts, releases, requests
from adjourn_control_plane.job.events import (
    Adopted,
    Began,
    CancelRequested,
    CheckpointDamaged,
    ConditionChanged,
    DrainRequested,
    DrainWithdrawn,
    EpochEnded,
    Event,
    Failed,
    Finished,
    Lost,
    MemoryNearlyFull,
    Observed,
    PausePhase,
    PauseRequested,
    Placed,
    Registered,
    ReleaseConfirmed,
    Requested,
    Rested,
    ResumeRequested,
    Stopped,
    Unplaced,
    UpdateRequested,
)
from adjourn_control_plane.job.transition import Decision, Transition

State: TypeAlias = Job.State.ValueType
QUEUED, STARTING, RUNNING, PAUSING, PAUSED = Job.QUEUED, Job.STARTING, Job.RUNNING, Job.PAUSING, Job.PAUSED
CANCELLING, CANCELLED, SUCCEEDED, FAILED = Job.CANCELLING, Job.CANCELLED, Job.SUCCEEDED, Job.FAILED

HELD: Final = frozenset({STARTING, RUNNING, PAUSING, CANCELLING})
"""States in which a worker has the job."""
ENDED: Final = frozenset({CANCELLED, SUCCEEDED, FAILED})
"""States in which `end_time` is set."""

# fmt: off
TRANSITIONS: Final[Mapping[tuple[State, type[Event]], tuple[State, ...]]] = {
    (QUEUED, Placed): (STARTING, PAUSING),              # PAUSING: a pause is still wanted
    (QUEUED, Unplaced): (QUEUED,),
    (QUEUED, PauseRequested): (PAUSED, QUEUED),             # nothing to save; QUEUED: asked already, work to be redone
    (QUEUED, ResumeRequested): (QUEUED,),
    (QUEUED, CancelRequested): (CANCELLED,),

    (STARTING, Began): (RUNNING,),
    (STARTING, PauseRequested): (PAUSING,),                 # pauses at its first boundary
    (STARTING, ResumeRequested): (STARTING,),
    (STARTING, CancelRequested): (CANCELLING,),
    (STARTING, Finished): (SUCCEEDED, QUEUED, FAILED),  # a run so short that its beginning was not seen
    (STARTING, Rested): (QUEUED, FAILED),
    (STARTING, Stopped): (QUEUED,),
    (STARTING, Failed): (FAILED, QUEUED),
    (STARTING, CheckpointDamaged): (QUEUED, FAILED),        # from an older one; FAILED: there is none
    (STARTING, Lost): (QUEUED, FAILED),

    (RUNNING, PauseRequested): (PAUSING,),
    (RUNNING, CancelRequested): (CANCELLING,),
    (RUNNING, Finished): (SUCCEEDED, QUEUED, FAILED),
    (RUNNING, Rested): (QUEUED, FAILED),                # the pause was taken back, but training had left
    (RUNNING, Stopped): (QUEUED,),
    (RUNNING, Failed): (FAILED, QUEUED),
    (RUNNING, CheckpointDamaged): (QUEUED, FAILED),
    (RUNNING, Lost): (QUEUED, FAILED),

    (STARTING, DrainRequested): (PAUSING, STARTING),        # STARTING, RUNNING: it has no boundary to leave at
    (RUNNING, DrainRequested): (PAUSING, RUNNING),
    (PAUSING, DrainWithdrawn): (RUNNING, STARTING, PAUSING),  # PAUSING: it is held too, or training has left

    (PAUSING, Began): (PAUSING,),
    (PAUSING, PauseRequested): (PAUSING,),
    (PAUSING, ResumeRequested): (RUNNING, STARTING, PAUSING),  # a change of mind; PAUSING: training has left
    (PAUSING, CancelRequested): (CANCELLING,),
    (PAUSING, Rested): (PAUSED, QUEUED, FAILED),
    (PAUSING, Finished): (SUCCEEDED, QUEUED, PAUSED, FAILED),  # the run ended first
    (PAUSING, Stopped): (PAUSED, QUEUED),
    (PAUSING, Failed): (FAILED, PAUSED, QUEUED),
    (PAUSING, CheckpointDamaged): (PAUSED, QUEUED, FAILED),  # rests on an older one
    (PAUSING, Lost): (PAUSED, QUEUED, FAILED),

    (PAUSED, PauseRequested): (PAUSED,),
    (PAUSED, ResumeRequested): (QUEUED, PAUSED),            # PAUSED: other holds are left
    (PAUSED, CancelRequested): (CANCELLED,),

    (CANCELLING, Began): (CANCELLING,),
    (CANCELLING, CancelRequested): (CANCELLING,),
    (CANCELLING, Finished): (SUCCEEDED, CANCELLED),     # the run ended first; CANCELLED: its checkpoint is unknown
    (CANCELLING, Rested): (CANCELLED,),
    (CANCELLING, Stopped): (CANCELLED,),
    (CANCELLING, Failed): (CANCELLED,),
    (CANCELLING, CheckpointDamaged): (CANCELLED,),
    (CANCELLING, Lost): (CANCELLED,),

    (CANCELLED, CancelRequested): (CANCELLED,),
    (CANCELLED, ResumeRequested): (QUEUED,),
    (FAILED, ResumeRequested): (QUEUED,),
} | {
    (state, UpdateRequested): (state,)
    for state in (QUEUED, STARTING, RUNNING, PAUSING, PAUSED, CANCELLING, CANCELLED, SUCCEEDED, FAILED)
} | {
    # An earlier attempt, whose worker was out of reach, is known to be gone.
    (state, ReleaseConfirmed): (state,)
    for state in (QUEUED, STARTING, RUNNING, PAUSING, PAUSED, CANCELLING, CANCELLED, SUCCEEDED, FAILED)
} | {
    (state, event): (state,)
    for state in HELD
    for event in (Observed, EpochEnded, MemoryNearlyFull, Registered, PausePhase, ConditionChanged)
} | {
    # A later attempt than the record knows of is adopted: the store is older than the worker.
    (STARTING, Adopted): (STARTING,),
    (RUNNING, Adopted): (STARTING, RUNNING),
    (PAUSING, Adopted): (PAUSING, STARTING),            # STARTING: resumed after training had left
    (CANCELLING, Adopted): (CANCELLING,),
} | {
    # The attempt was lost, and is heard of again.
    (QUEUED, Adopted): (RUNNING, STARTING, PAUSING, QUEUED),
    (QUEUED, Registered): (QUEUED, PAUSED),             # PAUSED: the pause had to wait for a first checkpoint
    (QUEUED, Rested): (QUEUED,),
    (QUEUED, Finished): (SUCCEEDED, QUEUED),
    (QUEUED, Stopped): (QUEUED,),
    (QUEUED, Failed): (QUEUED, FAILED),
    (QUEUED, CheckpointDamaged): (QUEUED, FAILED),

    (PAUSED, Adopted): (PAUSING, PAUSED),
    (PAUSED, Registered): (PAUSED,),                    # the pause rests on the newer checkpoint
    (PAUSED, Rested): (PAUSED,),                        # nothing was lost
    (PAUSED, Finished): (SUCCEEDED, PAUSED),
    (PAUSED, Stopped): (PAUSED,),
    (PAUSED, Failed): (PAUSED,),
    (PAUSED, CheckpointDamaged): (PAUSED, FAILED),      # rests on an older one; FAILED: there is none

    (FAILED, Adopted): (RUNNING, STARTING, PAUSING, FAILED),
    (CANCELLED, Registered): (CANCELLED,),              # it was to save a last checkpoint
    (CANCELLED, Rested): (CANCELLED,),
    (CANCELLED, Finished): (CANCELLED,),
    (CANCELLED, Stopped): (CANCELLED,),
    (CANCELLED, Failed): (CANCELLED,),

    (FAILED, Registered): (FAILED,),                    # a resume goes on from it
    (FAILED, Rested): (QUEUED, PAUSED, FAILED),
    (FAILED, Finished): (SUCCEEDED, FAILED),
    (FAILED, Stopped): (FAILED, QUEUED, PAUSED),        # FAILED: it was stopped because the job had failed
    (FAILED, CheckpointDamaged): (QUEUED, PAUSED, FAILED),
    (FAILED, Failed): (FAILED, QUEUED, PAUSED),         # others than FAILED: the failure costs no restart
} | {
    (state, event): (state,)
    for state in (QUEUED, PAUSED, FAILED, CANCELLED)
    for event in (EpochEnded, PausePhase, ConditionChanged)
}
# fmt: on


HANDLERS: Final[Mapping[type[Event], Callable[[Transition, Any], None]]] = {
    Placed: attempts.placed,
    Unplaced: attempts.unplaced,
    PauseRequested: requests.pause_requested,
    ResumeRequested: requests.resume_requested,
    CancelRequested: requests.cancel_requested,
    UpdateRequested: requests.update_requested,
    DrainRequested: drains.drain_requested,
    DrainWithdrawn: drains.drain_withdrawn,
    Observed: attempts.observed,
    Began: attempts.began,
    EpochEnded: attempts.epoch_ended,
    MemoryNearlyFull: attempts.memory_nearly_full,
    Registered: attempts.registered,
    PausePhase: attempts.pause_phase,
    ConditionChanged: attempts.condition_changed,
    Rested: attempts.rested,
    Finished: attempts.finished,
    Stopped: attempts.stopped,
    Failed: attempts.failed,
    CheckpointDamaged: damage.checkpoint_damaged,
    Lost: lost_attempts.lost,
    Adopted: lost_attempts.adopted,
    ReleaseConfirmed: releases.release_confirmed,
}


def decide(record: JobRecord, event: Event, now: datetime) -> Decision | None:
    """Returns what follows from `event`; None if nothing does. Raises a PreconditionError if the state forbids it."""
    allowed = TRANSITIONS.get((record.job.state, type(event)))
    if allowed is None:
        if isinstance(event, Requested):
            requests.refuse(record, event, states_for(type(event)))
        return None
    transition = Transition(record, event.actor, now)
    HANDLERS[type(event)](transition, event)
    decision = transition.decision(record)
    after = decision.record.job.state
    if after not in allowed:
        raise AssertionError(f"{event} took {record} to {Job.State.Name(after)}, which TRANSITIONS does not know")
    return decision if decision.record != record else None


def create(job: Job, *, uid: str, actor: str, now: datetime) -> Decision:
    """Returns the first record of a job whose name, spec and labels are set; `uid`: a UUID that no job had before."""
    record = JobRecord(job=job)
    record.job.uid = record.token.job_uid = uid
    record.job.create_time.FromDatetime(now)
    record.job.creator = actor
    transition = Transition(record, actor, now)
    transition.set_state(QUEUED, JobEvent.CREATED)
    return transition.decision(JobRecord())


def states_for(event: type[Event]) -> list[State]:
    """Returns the states in which an event may happen."""
    return [state for state, known in TRANSITIONS if known is event]
