"""PURE. Attempts whose worker is out of reach: nobody knows whether their processes are gone, and their GPUs free.

Such an attempt is in `JobRecord.unconfirmed_releases`, whatever becomes of the job: it may be placed elsewhere, paused,
cancelled, or end, and several attempts may be unconfirmed. The job has the condition RELEASE_UNCONFIRMED meanwhile, and
a pause whose process was left behind has no `release_time`. An entry ends when

- the agent of the same instance is back and does not hold the attempt, or says that its process is gone;
- the attempt is adopted: it is the job's again;
- an operator deletes the worker, or the instance of it that had the attempt.

What another instance of the worker says, its successor on another machine or disk, confirms nothing.
"""

from typing import Final

from adjourn import reasons
from adjourn.internal.v1.record_pb2 import JobRecord, UnconfirmedRelease
from adjourn.v1.agent_service_pb2 import FencingToken
from adjourn.v1.job_pb2 import Condition, Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import pauses
from adjourn_control_plane.job.events import ReleaseConfirmed
from adjourn_control_plane.job.transition import Transition

KEPT: Final = 50
"""Unconfirmed attempts that a job remembers: the newest. Older ones are stopped all the same when they are heard of, by
their fencing token, and what their worker says that they hold is not offered."""
GONE: Final = "its worker has told that its process is gone"


def doubt(transition: Transition, instance: str) -> None:
    """Notes that the attempt under way is out of reach. `instance`: of the worker that has it.

    Nothing is to be doubted once the worker has told that the process left its GPUs.
    """
    record, job = transition.record, transition.job
    if record.released:
        return
    entry = record.unconfirmed_releases.add(
        worker=job.worker, instance=instance, token=record.token, device_uuids=record.device_uuids
    )
    entry.time.FromDatetime(transition.now)
    if job.state == Job.PAUSING:
        job.pause.from_instance = instance
    del record.unconfirmed_releases[:-KEPT]
    tell(transition)


def is_of(entry: UnconfirmedRelease, worker: str, instance: str) -> bool:
    """Returns whether the agent that speaks is the one that had the attempt.

    An agent that was too old to tell its instance cannot be told from its successor.
    """
    return entry.worker == worker and entry.instance in (instance, "")


def unconfirmed(record: JobRecord, token: FencingToken) -> UnconfirmedRelease | None:
    """Returns the entry of an attempt; None if nothing of it is in doubt."""
    return next((each for each in record.unconfirmed_releases if each.token == token), None)


def drop(transition: Transition, token: FencingToken, why: str) -> UnconfirmedRelease | None:
    """Removes and returns the entry of an attempt; None if there is none."""
    entries = transition.record.unconfirmed_releases
    entry = unconfirmed(transition.record, token)
    if entry is not None:
        kept = UnconfirmedRelease()
        kept.CopyFrom(entry)
        entries.remove(entry)
        tell(transition, why)
        return kept
    return None


def confirm(transition: Transition, token: FencingToken, why: str = GONE) -> None:
    """Notes that the process of an attempt is gone; nothing, if that was not in doubt.

    A pause that left it behind has its release time then, unless the worker tells, or has told, its own.
    """
    entry = drop(transition, token, why)
    if entry is not None:
        pauses.left_behind_is_gone(transition.record, entry.worker, transition.now)


def release_confirmed(transition: Transition, event: ReleaseConfirmed) -> None:
    confirm(transition, event.token, event.message or GONE)


def of_instance(entry: UnconfirmedRelease) -> str:
    """Returns the instance that had the attempt, in words that follow its worker."""
    return f" (instance {entry.instance})" if entry.instance else ""


def tell(transition: Transition, why: str = "") -> None:
    """Brings the condition in line with the entries. `why`: an entry ended."""
    entries = transition.record.unconfirmed_releases
    if not entries:
        transition.end_condition(Condition.RELEASE_UNCONFIRMED, why)
        return
    attempts = "; ".join(f"attempt {entry.token.attempt} on {entry.worker}{of_instance(entry)}" for entry in entries)
    message = (
        f"out of reach, and not known to have ended: {attempts}. Its GPUs may be in use until the worker is back "
        "and says so. If the machine is gone for good, delete the worker; if another has its name by now, that instance"
    )
    known = any(each.type == Condition.RELEASE_UNCONFIRMED for each in transition.job.conditions)
    transition.begin_condition(Condition.RELEASE_UNCONFIRMED, reasons.WORKER_OUT_OF_REACH, message)
    if known:  # the condition had begun: say that it is about other attempts now
        transition.record_event(
            JobEvent.CONDITION_BEGAN,
            f"{why}; {message}" if why else message,
            condition=Condition.Type.Name(Condition.RELEASE_UNCONFIRMED),
            reason=reasons.WORKER_OUT_OF_REACH,
        )
