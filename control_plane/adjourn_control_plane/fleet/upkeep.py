"""Loops that every replica runs: place queued jobs, take silent workers for lost, purge what was deleted.

They race between replicas safely: each change is a compare-and-set, and losing one means that it was done.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

import structlog

from adjourn import errors, reasons
from adjourn.objects import ObjectStore
from adjourn.v1.job_pb2 import Failure
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.aio import end
from adjourn_control_plane.api.workers import state
from adjourn_control_plane.fleet import placement
from adjourn_control_plane.fleet.leases import Leases
from adjourn_control_plane.job.events import Lost, Placed
from adjourn_control_plane.job.retries import ready_time
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import Allocation, Conflict, JobName, JobStore, Session, WorkerName
from adjourn_control_plane.store.notifier import Notifier

log = structlog.get_logger()

PURGE_SECONDS: Final = 5.0


class Upkeep:
    """What must happen without anybody asking."""

    def __init__(
        self, store: JobStore, updater: JobUpdater, objects: ObjectStore, notifier: Notifier, settings: Settings
    ) -> None:
        self.store = store
        self.updater = updater
        self.objects = objects
        self.notifier = notifier
        self.interval = settings.sync_interval.total_seconds()
        self.leases = Leases(settings.lease_duration)

    async def run(self) -> None:
        """Runs all loops until cancelled."""
        loops = (
            asyncio.create_task(self.on_change("placement", self.place)),
            asyncio.create_task(self.every("leases", self.expire, self.interval / 2)),
            asyncio.create_task(self.every("purge", self.purge, PURGE_SECONDS)),
        )
        try:
            await asyncio.gather(*loops)
        finally:
            await end(*loops)

    async def on_change(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        with self.notifier.subscription() as subscription:
            while not self.notifier.closed:
                await self.attempt(name, work)
                try:
                    await self.notifier.wait(subscription, self.interval)
                except errors.ShuttingDownError:
                    return

    async def every(self, name: str, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        while True:
            await self.attempt(name, work)
            await asyncio.sleep(seconds)

    async def attempt(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Runs one round; what fails is logged and tried again in the next."""
        try:
            await work()
        except (errors.StoreUnavailableError, errors.ObjectStoreUnavailableError) as error:
            if isinstance(error, errors.StoreUnavailableError):
                self.leases.forget()
            log.warning("upkeep_waits", loop=name, error=error.message)
        except Exception:
            log.exception("upkeep_failed", loop=name)

    async def place(self) -> None:
        """Hands queued jobs to workers with room, oldest first."""
        queued = [stored for stored in await self.store.queued() if ready_time(stored.record) <= datetime.now(UTC)]
        if not queued:
            return
        allocations: dict[str, Allocation] = {}
        capacities: dict[str, placement.Capacity] = {}

        async def look(worker: Worker) -> None:
            allocations[worker.name] = await self.store.allocation(WorkerName(worker.name))
            capacities[worker.name] = placement.capacity(worker, allocations[worker.name])

        workers = {each.worker.name: each.worker for each in await self.store.sessions() if takes_work(each)}
        for worker in workers.values():
            await look(worker)
        for stored in queued:
            place = placement.choose(stored.record.job.spec, list(capacities.values()))
            if place is None:
                continue
            event = Placed(
                actor="control_plane",
                worker=place.worker,
                device_uuids=place.device_uuids,
                nonce=secrets.token_hex(16),
            )
            try:
                await self.updater.apply(JobName(stored.record.job.name), event, allocation=allocations[place.worker])
            except Conflict:
                log.info("placement_overtaken", job=stored.record.job.name, worker=place.worker)
            except errors.NotFoundError:
                continue
            await look(workers[place.worker])

    async def expire(self) -> None:
        """Takes workers that are silent for a lease for lost, and their jobs from them."""
        sessions = await self.store.sessions()
        for session in self.leases.expired(sessions, time.monotonic()):
            if await self.store.mark_lost(WorkerName(session.worker.name), session.heartbeat):
                log.warning("worker_lost", worker=session.worker.name, lease=str(self.leases.duration))
        for session in await self.store.sessions():
            if session.lost:
                await self.take_back(WorkerName(session.worker.name))

    async def take_back(self, worker: WorkerName) -> None:
        message = f"{worker} was not heard from for {self.leases.duration.total_seconds():g} s"
        event = Lost(actor="control_plane", failure=Failure(reason=reasons.WORKER_LOST, message=message))
        for stored in (await self.store.allocation(worker)).jobs:
            await self.updater.apply(JobName(stored.record.job.name), event, token=stored.record.token)

    async def purge(self) -> None:
        """Removes the objects of deleted jobs.

        No uid is used twice, so any number of replicas may do it, again and however late.
        """
        for uid in await self.store.tombstones():
            removed = await self.objects.delete_prefix(f"checkpoints/{uid}/")
            await self.store.remove_tombstone(uid)
            log.info("job_purged", uid=uid, objects=removed)


def takes_work(session: Session) -> bool:
    """Returns whether a worker may be given jobs."""
    return state(session, busy=True) == Worker.ACTIVE
