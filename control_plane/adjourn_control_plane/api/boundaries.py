"""What the answer to a pause says beside predictions: the epoch at which training pauses, if its worker tells soon."""

import asyncio
import contextlib
from typing import Final

from adjourn import errors
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Job, Pause
from adjourn_control_plane.store.interface import JobName, JobStore, WorkerName
from adjourn_control_plane.store.notifier import Notifier

PATIENCE: Final = 1.0
"""Seconds that an answer waits at most: somebody waits for it."""
SHARE: Final = 0.5
"""Of the time that the caller has left, at most: an answer that comes too late says nothing."""
LOOK_SECONDS: Final = 0.25
"""How often to look without a notification, which may be missed."""


class Boundaries:
    """Knows at which epochs jobs pause."""

    def __init__(self, store: JobStore, notifier: Notifier, patience: float) -> None:
        self.store = store
        self.notifier = notifier
        self.patience = patience

    async def named(self, asked: Job, time_left: float | None) -> Job:
        """Returns a job that was asked to pause, with the epoch of that if it becomes known in time.

        `time_left`: seconds until the caller gives up; None: it does not.
        """
        answer = Job()
        answer.CopyFrom(asked)
        patience = self.patience if time_left is None else min(self.patience, SHARE * time_left)
        if not asked.pause.boundary_epoch:
            with contextlib.suppress(errors.ShuttingDownError):  # the pause is asked for: that is the answer
                answer.pause.MergeFrom(await self.found(asked, patience))
        return answer

    async def found(self, asked: Job, patience: float) -> Pause:
        """Waits until it is known where a job pauses, as long as that may become known; returns what is known then."""
        now = asyncio.get_running_loop().time
        deadline = now() + patience
        with self.notifier.subscription(asked.worker) as changed:
            while True:
                stored = await self.store.get(JobName(asked.name))
                if stored is None or not is_same_pause(stored.record.job, asked):
                    return Pause()
                known = prediction(stored.record.job)
                left = deadline - now()
                if known.boundary_epoch or left <= 0 or not await self.may_tell(stored.record):
                    return known
                await self.notifier.wait(changed, min(left, LOOK_SECONDS))

    async def may_tell(self, record: JobRecord) -> bool:
        """Returns whether the worker of a pausing job is there, and its training has got so far that it can tell."""
        if not record.began or record.released:
            return False
        session = await self.store.session(WorkerName(record.job.worker))
        return session is not None and session.connected


def is_same_pause(job: Job, asked: Job) -> bool:
    """Returns whether a job is on its way to the pause that was asked for, or has come to rest there.

    A pause that became earlier meanwhile comes at no epoch that could be named.
    """
    same = job.uid == asked.uid and job.pause.request_time == asked.pause.request_time
    return same and job.pause.mode == asked.pause.mode and job.state in (Job.PAUSING, Job.PAUSED)


def prediction(job: Job) -> Pause:
    """Returns where the pause of a job is, as far as it is known, and the predictions that belong to that."""
    pause = job.pause
    known = Pause(boundary_epoch=pause.epoch if job.state == Job.PAUSED else pause.boundary_epoch)
    if known.boundary_epoch and pause.HasField("predicted_boundary_time"):
        known.predicted_boundary_time.CopyFrom(pause.predicted_boundary_time)
    if known.boundary_epoch and pause.HasField("predicted_release_time"):
        known.predicted_release_time.CopyFrom(pause.predicted_release_time)
    return known
