"""Takes workers that have been silent for a lease for lost, and their jobs from them.

Every replica does so. They race safely: a loss is a compare-and-set on the worker's heartbeat, and taking a job back
is one on the job's fencing token. A round costs nothing for workers that are lost and hold no job.
"""

import time
from collections.abc import Callable

import structlog

from adjourn import errors, reasons
from adjourn.v1.job_pb2 import Failure
from adjourn_control_plane.fleet import rounds
from adjourn_control_plane.fleet.leases import Leases
from adjourn_control_plane.job.events import Lost
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import Fence, Fenced, JobName, JobStore, WorkerName

log = structlog.get_logger()


def monotonic() -> float:
    """Returns the time on the monotonic clock, in seconds."""
    return time.monotonic()


class LeaseMonitor:
    """Counts the leases of all workers."""

    def __init__(
        self,
        store: JobStore,
        updater: JobUpdater,
        settings: Settings,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.store = store
        self.updater = updater
        self.clock = clock
        self.interval = settings.sync_interval.total_seconds()
        self.leases = Leases(settings.lease_duration)

    async def run(self) -> None:
        """Looks twice an interval until cancelled."""
        await rounds.together(
            rounds.every(self.interval / 2, "lease_monitor.pulse", self.pulse),
            rounds.every(self.interval / 2, "lease_monitor", self.expire),
        )

    async def pulse(self) -> None:
        """Notes that this process runs, however long a round takes."""
        self.leases.awake(self.clock())

    async def expire(self) -> None:
        """Marks silent workers lost, and takes the jobs of lost workers back."""
        asked = self.clock()
        self.leases.awake(asked)
        try:
            sessions = await self.store.live_sessions()
            for session in self.leases.expired(sessions, asked=asked, answered=self.clock()):
                if await self.store.mark_lost(WorkerName(session.worker.name), session.heartbeat):
                    log.warning("worker_lost", worker=session.worker.name, lease=str(self.leases.duration))
            for worker in await self.store.lost_holders():
                await self.take_back(worker)
        except errors.StoreUnavailableError:
            self.leases.forget()  # heartbeats cannot be written either
            raise

    async def take_back(self, worker: WorkerName) -> None:
        """Takes all jobs from a lost worker. What fails for one job is tried again in the next round."""
        session = await self.store.session(worker)
        if session is not None and not session.lost:
            return  # it came back while others were dealt with
        silent = Fence(worker=worker, stream=session.stream, heartbeat=session.heartbeat) if session else None
        message = f"{worker} was not heard from for {self.leases.duration.total_seconds():g} s"
        event = Lost(
            actor="control_plane",
            failure=Failure(reason=reasons.WORKER_LOST, message=message),
            out_of_reach=True,
            instance=session.worker.instance if session else "",
        )
        for stored in (await self.store.allocation(worker)).jobs:
            job = JobName(stored.record.job.name)
            try:
                await self.updater.apply(job, event, token=stored.record.token, fence=silent)
            except Fenced:
                log.info("worker_is_back", job=job, worker=worker)
                return  # just now, however long this replica was held up
            except (errors.NotFoundError, errors.ContentionError) as error:  # deleted, or busy: others go on
                log.info("not_taken_back", job=job, worker=worker, error=error.message)
