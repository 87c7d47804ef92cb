"""What the answer to a pause says beside predictions: the epoch at which training pauses, if its worker tells soon."""

import asyncio
import contextlib
from typing import Final

from adjourn import errors
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Job
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
        if asked.pause.boundary_epoch:
            return asked
        answer = Job()
        answer.CopyFrom(asked)
        patience = self.patience if time_left is None else min(self.patience, SHARE * time_left)
        with contextlib.suppress(errors.ShuttingDownError):  # the pause is asked for: that is the answer
            answer.pause.boundary_epoch = await self.found(asked, patience)
        return answer

    async def found(self, asked: Job, patience: float) -> int:
        """Waits for the epoch at which a job pauses, as long as that may become known; returns 0 if it did not."""
        now = asyncio.get_running_loop().time
        deadline = now() + patience
        with self.notifier.subscription(asked.worker) as changed:
            while True:
                stored = await self.store.get(JobName(asked.name))
                if stored is None or not is_same_pause(stored.record.job, asked):
                    return 0
                job = stored.record.job
                if job.state == Job.PAUSED:
                    return job.pause.epoch
                left = deadline - now()
                if job.pause.boundary_epoch or left <= 0 or not await self.may_tell(stored.record):
                    return job.pause.boundary_epoch
                await self.notifier.wait(changed, min(left, LOOK_SECONDS))

    async def may_tell(self, record: JobRecord) -> bool:
        """Returns whether the worker of a pausing job is there, and its training has got so far that it can tell."""
        if not record.began or record.released:
            return False
        session = await self.store.session(WorkerName(record.job.worker))
        return session is not None and session.connected


def is_same_pause(job: Job, asked: Job) -> bool:
    """Returns whether a job is on its way to the pause that was asked for, or has come to rest there."""
    same = job.uid == asked.uid and job.pause.request_time == asked.pause.request_time
    return same and job.state in (Job.PAUSING, Job.PAUSED)
