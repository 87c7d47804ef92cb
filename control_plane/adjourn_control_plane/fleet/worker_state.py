"""PURE. The state that a worker is in, by what the store knows of it."""

from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.store.interface import Session


def state(session: Session, *, busy: bool) -> Worker.State.ValueType:
    """Returns a worker's state; `busy`: it holds jobs."""
    if session.lost:
        return Worker.LOST
    if not session.connected:
        return Worker.DISCONNECTED
    if session.worker.draining:
        return Worker.DRAINING if busy else Worker.DRAINED
    return Worker.ACTIVE


def takes_work(session: Session) -> bool:
    """Returns whether a worker may be given jobs."""
    return state(session, busy=True) == Worker.ACTIVE
