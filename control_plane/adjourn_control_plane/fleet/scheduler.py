"""Hands queued jobs to workers, and says on each that stays in the queue why.

The scheduler keeps a view of the queue and of what the workers have to spare. It follows the stream of changes: a
change tells which job entered or left the queue and whose allocation it touched, and only those are read again. A pass
looks at each class of equal jobs once (`queue`), and lets others run in between.

Replicas race safely: each placement is a compare-and-set on the job and on the worker's allocation. Losing one means
that another replica has placed something.
"""

import asyncio
import heapq
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog

from adjourn import errors, reasons
from adjourn.v1.job_pb2 import Job
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.fleet import placement, rounds
from adjourn_control_plane.fleet.placement import Binding, Capacity, Match, Needs
from adjourn_control_plane.fleet.queue import Queue
from adjourn_control_plane.fleet.worker_state import takes_work
from adjourn_control_plane.job.events import Placed, Unplaced
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import (
    Allocation,
    Changed,
    Conflict,
    JobName,
    JobStore,
    TokenTooOld,
    WorkerName,
)
from adjourn_control_plane.store.notifier import Notifier

log = structlog.get_logger()

ACTOR: Final = "control_plane"
CHANGES_AT_ONCE: Final = 500
CLASSES_AT_ONCE: Final = 20
"""Classes of jobs looked at before others run. A look at 1,000 workers takes a millisecond or two."""
CONDITIONS_A_PASS: Final = 100
MATCHES_A_PASS: Final = 500
"""Conditions written, and classes newly matched with the workers for that, in a pass. The next passes do the rest."""
REST_SECONDS: Final = 0.05
REST_SHARE: Final = 4
"""Rest after a pass: at least REST_SECONDS, and so many times as long as the pass took. Changes meanwhile are one."""

OUTAGE_SECONDS: Final = 1.0
"""How soon to look again after the store was away."""


def clock() -> float:
    """Returns the time on the monotonic clock that waits are counted on, in seconds."""
    return asyncio.get_running_loop().time()


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a worker had to spare when its allocation was read."""

    worker: Worker
    allocation: Allocation
    capacity: Capacity


class Scheduler:
    """Places queued jobs, oldest first. A job that fits nowhere holds up no other."""

    def __init__(self, store: JobStore, updater: JobUpdater, notifier: Notifier, settings: Settings) -> None:
        self.store = store
        self.updater = updater
        self.notifier = notifier
        self.interval = settings.sync_interval.total_seconds()
        self.queue = Queue()
        self.token = ""
        """Position in the stream of changes; empty: the queue must be read anew."""
        self.stale: dict[JobName, None] = {}
        """Jobs that are in the queue, by a change that was seen, and have to be read."""
        self.workers: dict[str, Worker] = {}
        """All workers that are not lost."""
        self.rooms: dict[str, Room] = {}
        """Of workers that take jobs; of those missing here the allocation has to be read."""
        self.matches: dict[Needs, Match] = {}
        """Which workers suit a class of jobs, for as long as `workers` stays the same."""
        self.remaining = False
        """Whether the last pass may have left conditions to be written."""
        self.arrivals = -1
        self.sessions_time = 0.0

    async def run(self) -> None:
        """Places after each change that matters and at every interval, until cancelled or drained."""
        loop = asyncio.get_running_loop()
        with self.notifier.subscription() as subscription:
            while not self.notifier.closed:
                began = loop.time()
                await rounds.attempt("scheduler", self.look)
                await asyncio.sleep(min(max(REST_SECONDS, REST_SHARE * (loop.time() - began)), self.interval))
                try:
                    await self.notifier.wait(subscription, self.patience())
                except errors.ShuttingDownError:
                    return

    def patience(self) -> float:
        """Returns after how many seconds to look without a change."""
        if self.remaining:
            return 0
        if self.stale or not self.token:  # the store was away
            return min(OUTAGE_SECONDS, self.interval)
        ready = self.queue.next_ready()
        delay = self.interval if ready is None else ready - clock()
        return min(max(delay, 0), self.interval)

    async def look(self) -> None:
        """Makes a pass if anything happened that may let a job be placed."""
        now = clock()
        matters = await self.catch_up()
        ready = self.queue.next_ready()
        due = ready is not None and ready <= now
        arrived = self.arrivals != self.notifier.arrivals or now - self.sessions_time >= self.interval / 2
        if matters or due or arrived or self.remaining:
            await self.assign()

    async def place(self) -> None:
        """Makes a pass."""
        await self.catch_up()
        await self.assign()

    async def catch_up(self) -> bool:
        """Brings the view up to date with the store; False if nothing of it has changed."""
        matters = False
        try:
            if not self.token:
                await self.reload()
                matters = True
            while changes := await self.store.changes(self.token, size=CHANGES_AT_ONCE):
                matters |= self.invalidate(changes)
                self.token = changes[-1].token
        except TokenTooOld:
            self.token = ""
            return await self.catch_up()
        for job in list(self.stale):
            stored = await self.store.get(job)
            if stored is None or stored.record.job.state != Job.QUEUED:
                self.queue.remove(job)
            else:
                matters |= self.queue.put(job, stored.record, datetime.now(UTC), clock())
            del self.stale[job]
        return matters

    def invalidate(self, changes: Sequence[Changed]) -> bool:
        """Notes what changes make out of date; False if they tell of progress only."""
        matters = False
        for change in changes:
            if change.state == Job.QUEUED:
                self.stale[change.job] = None
            else:
                self.stale.pop(change.job, None)
                self.queue.remove(change.job)
            for worker in change.workers:
                room = self.rooms.get(worker)
                if room is None or room.allocation.version < change.version:
                    self.rooms.pop(worker, None)
                    matters = True
        return matters

    async def reload(self) -> None:
        """Reads the whole queue, page by page."""
        token = await self.store.latest_token()
        queue = Queue()
        async for page in self.store.queued():
            for stored in page:
                queue.put(JobName(stored.record.job.name), stored.record, datetime.now(UTC), clock())
        self.queue, self.token = queue, token
        self.rooms.clear()

    async def assign(self) -> None:
        """Hands out what fits, class by class, and explains what is left."""
        self.remaining = False
        self.queue.release(clock())
        free = await self.free_rooms()
        order: list[tuple[int, int, Needs]] = []  # a heap: the class of the oldest job first
        for index, needs in enumerate(list(self.queue.classes) if free else ()):
            await self.let_others_run(index)
            if oldest := self.queue.oldest(needs):
                heapq.heappush(order, (oldest[0], index, needs))
        looks = 0
        while order and free:
            _, index, needs = heapq.heappop(order)
            looks += 1
            await self.let_others_run(looks)
            oldest = self.queue.oldest(needs)
            if oldest is None:
                continue
            returns_to = self.queue.waiting[oldest[1]].home
            binding = placement.choose(needs, await self.match(needs), free, returns_to)
            if binding is None:
                continue
            await self.bind(oldest[1], binding)
            room = await self.room(self.workers[binding.worker])
            free.pop(binding.worker)
            if room.capacity.free:
                free[binding.worker] = room.capacity
            if oldest := self.queue.oldest(needs):
                heapq.heappush(order, (oldest[0], index, needs))
        await self.explain()

    async def let_others_run(self, looks: int) -> None:
        if looks % CLASSES_AT_ONCE == 0:
            await asyncio.sleep(0)

    async def free_rooms(self) -> dict[str, Capacity]:
        """Returns the workers that have anything to spare."""
        self.arrivals = self.notifier.arrivals
        self.sessions_time = clock()
        sessions = await self.store.live_sessions()
        workers = {session.worker.name: session.worker for session in sessions}
        if workers != self.workers:
            self.workers = workers
            self.matches.clear()
        if len(self.matches) > 2 * len(self.queue.classes) + MATCHES_A_PASS:
            self.matches = {needs: known for needs, known in self.matches.items() if needs in self.queue.classes}
        takers = {session.worker.name for session in sessions if takes_work(session)}
        self.rooms = {name: room for name, room in self.rooms.items() if name in takers}
        free = {}
        for name in sorted(takers) if self.queue.classes else ():
            room = self.rooms.get(name)
            if room is None or room.worker != workers[name]:
                room = await self.room(workers[name])
            if room.capacity.free:
                free[name] = room.capacity
        return free

    async def room(self, worker: Worker) -> Room:
        """Reads what a worker has to spare."""
        allocation = await self.store.allocation(WorkerName(worker.name))
        unconfirmed = await self.store.unconfirmed(WorkerName(worker.name))  # after the version that is guarded by
        capacity = placement.capacity(worker, allocation, unconfirmed)
        version = Allocation(worker=allocation.worker, version=allocation.version)
        room = self.rooms[worker.name] = Room(worker=worker, allocation=version, capacity=capacity)
        return room

    async def match(self, needs: Needs) -> Match:
        """Returns which workers suit a class; lets others run if it has to find out."""
        known = self.matches.get(needs)
        if known is None:
            await asyncio.sleep(0)
            known = self.matches[needs] = placement.match(needs, list(self.workers.values()))
        return known

    async def bind(self, job: JobName, binding: Binding) -> None:
        """Gives a job to a worker, unless somebody else was first."""
        event = Placed(
            actor=ACTOR,
            worker=binding.worker,
            device_uuids=binding.device_uuids,
            nonce=secrets.token_hex(16),
            instance=self.rooms[binding.worker].worker.instance,
        )
        try:
            await self.updater.apply(job, event, allocation=self.rooms[binding.worker].allocation)
        except Conflict:
            log.info("placement_overtaken", job=job, worker=binding.worker)
            self.queue.remove(job)
            self.stale[job] = None  # read it again: it may be gone, and the worker be full
        except errors.NotFoundError:
            self.queue.remove(job)
        else:
            self.queue.remove(job)

    async def explain(self) -> None:
        """Says on jobs that stay in the queue why, if their condition says something else."""
        left, unknown = CONDITIONS_A_PASS, MATCHES_A_PASS
        for looks, needs in enumerate(list(self.queue.classes)):
            await self.let_others_run(looks)
            unknown -= needs not in self.matches
            suited = await self.match(needs)
            event = Unplaced(actor=ACTOR, reason=suited.reason, message=suited.message)
            for job in self.queue.unexplained(needs, suited.reason, left):
                await self.tell(job, event)
                left -= 1
            if not left or not unknown:
                break
        for ready, job in list(self.queue.delayed_unexplained(left)):
            message = f"it failed; the next attempt is not before {ready:%Y-%m-%d %H:%M:%S} UTC"
            await self.tell(job, Unplaced(actor=ACTOR, reason=reasons.RESTART_DELAY, message=message))
            left -= 1
        self.remaining = not left or not unknown

    async def tell(self, job: JobName, event: Unplaced) -> None:
        """Puts the condition UNPLACED on a job."""
        try:
            await self.updater.apply(job, event)
        except errors.NotFoundError:
            self.queue.remove(job)
        else:
            self.queue.explained(job, event.reason)
