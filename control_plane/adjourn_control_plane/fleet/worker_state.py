"""PURE. The state that a worker is in, by what the store knows of it."""

from collections.abc import Sequence
from typing import Final

from adjourn import reasons
from adjourn.v1.job_pb2 import Condition
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.fleet import placement
from adjourn_control_plane.job.releases import is_of, of_instance
from adjourn_control_plane.store.interface import Session, Unconfirmed

LISTED: Final = 10
"""Attempts that a condition names."""


def state(session: Session, *, busy: bool) -> Worker.State.ValueType:
    """Returns a worker's state; `busy`: it holds jobs."""
    if session.lost:
        return Worker.LOST
    if not session.connected:
        return Worker.DISCONNECTED
    if session.worker.draining or session.drain is not None:
        return Worker.DRAINING if busy else Worker.DRAINED
    return Worker.ACTIVE


def release_condition(session: Session, left: Sequence[Unconfirmed]) -> Condition | None:
    """Returns the condition of a worker whose lost attempts may still live on it, whoever has their jobs now."""
    if not left:
        return None
    worker = session.worker
    here = not session.lost and all(is_of(each.entry, worker.name, worker.instance) for each in left)
    where = "it is back, and has not said yet that they are gone" if here else "they may live out of reach"
    names = [f"{each.job} attempt {each.entry.token.attempt}{of_instance(each.entry)}" for each in left]
    listed = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
    return Condition(
        type=Condition.RELEASE_UNCONFIRMED,
        reason=reasons.WORKER_OUT_OF_REACH,
        message=f"{len(left)} lost attempts, {where}: {listed}",
        time=min((each.entry.time for each in left), key=lambda time: (time.seconds, time.nanos)),
    )


def takes_work(session: Session) -> bool:
    """Returns whether a worker may be given jobs."""
    return not placement.disk_is_full(session.worker) and state(session, busy=True) == Worker.ACTIVE
