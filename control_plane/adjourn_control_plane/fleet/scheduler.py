"""Hands queued jobs to workers.

Replicas race safely: each placement is a compare-and-set on the job and on the worker's allocation. Losing one means
that another replica has placed something.
"""

import secrets
from datetime import UTC, datetime

import structlog

from adjourn import errors
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.fleet import placement, rounds
from adjourn_control_plane.fleet.worker_state import takes_work
from adjourn_control_plane.job.events import Placed
from adjourn_control_plane.job.retries import ready_time
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import Allocation, Conflict, JobName, JobStore, WorkerName
from adjourn_control_plane.store.notifier import Notifier

log = structlog.get_logger()


class Scheduler:
    """Places queued jobs, oldest first."""

    def __init__(self, store: JobStore, updater: JobUpdater, notifier: Notifier, settings: Settings) -> None:
        self.store = store
        self.updater = updater
        self.notifier = notifier
        self.interval = settings.sync_interval.total_seconds()

    async def run(self) -> None:
        """Places after each change and at every interval, until cancelled or drained."""
        with self.notifier.subscription() as subscription:
            while not self.notifier.closed:
                await rounds.attempt("scheduler", self.place)
                try:
                    await self.notifier.wait(subscription, self.interval)
                except errors.ShuttingDownError:
                    return

    async def place(self) -> None:
        """Hands queued jobs to workers with room, oldest first."""
        waiting = [stored async for page in self.store.queued() for stored in page]
        queued = [stored for stored in waiting[::-1] if ready_time(stored.record) <= datetime.now(UTC)]
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
