"""Bundles, jobs and replicas at which whoever does something goes on one call at a time, when the test says so."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from adjourn import bundles, errors
from adjourn.objects import STORAGE_ERRORS, Deletion, ObjectVersion
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn_control_plane.api.jobs import JobService
from adjourn_control_plane.fleet.bundle_collector import BundleCollector
from adjourn_control_plane.job import machine
from adjourn_control_plane.job.updater import Call, JobUpdater
from adjourn_control_plane.store.interface import BundleMarks, Change, JobName, Stored
from tests.harness.controllers import SETTINGS
from tests.harness.memory_objects import MemoryObjects
from tests.harness.memory_store import MemoryStore

BUNDLE: Final = f"bundles/{'b' * 64}"
KEY: Final = bundles.object_key(BUNDLE)
REFUSALS: Final = (errors.BundleMissingError, errors.ContentionError, errors.StoreUnavailableError, *STORAGE_ERRORS)
"""What somebody is told to try again, or to upload again."""


class Actor:
    """Somebody who does something; stands still before each call to the store or to storage."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.next = ""
        """The call before which it stands; empty: it has not come so far, or has ended."""
        self.arrived, self.open = asyncio.Event(), asyncio.Event()
        context = copy_context()
        context.run(ACTOR.set, self)
        self.outcome: object = None
        self.task = asyncio.create_task(self.run(work), context=context)

    async def run(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        await self.passed("begin")
        try:
            self.outcome = await work()
        except REFUSALS as error:
            self.outcome = error

    async def passed(self, call: str) -> None:
        self.next = call
        self.arrived.set()
        await self.open.wait()
        self.open.clear()
        self.next = ""

    async def step(self) -> None:
        """Goes on to the next call, or to the end."""
        if not self.task.done():
            self.arrived.clear()
            self.open.set()
            arrives = asyncio.create_task(self.arrived.wait())
            await asyncio.wait({self.task, arrives}, return_when=asyncio.FIRST_COMPLETED)
            arrives.cancel()
            if self.task.done() and not self.task.cancelled():
                self.task.result()

    async def until(self, call: str) -> None:
        """Goes on until it is about to make a call."""
        while self.next != call:
            assert not self.task.done(), f"it ended before {call}"
            await self.step()

    async def until_or_end(self, call: str) -> None:
        while self.next != call and not self.task.done():
            await self.step()

    async def end(self) -> Any:
        """Goes on to its end; returns what that came to."""
        while not self.task.done():
            await self.step()
        return self.outcome

    async def kill(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


ACTOR: ContextVar[Actor | None] = ContextVar("actor", default=None)
"""Whose the running task is."""


async def passed(call: str) -> None:
    if actor := ACTOR.get():
        await actor.passed(call)


class SteppedStore(MemoryStore):
    async def commit(self, change: Change) -> int:
        await passed("commit")
        return await super().commit(change)

    async def page(
        self, *, states: Sequence[Job.State.ValueType], labels: dict[str, str], size: int, before: int | None
    ) -> tuple[list[Stored], int | None]:
        await passed("page")
        return await super().page(states=states, labels=labels, size=size, before=before)

    async def want_bundle(self, bundle: str) -> int | None:
        await passed("want_bundle")
        return await super().want_bundle(bundle)

    async def bundle_marks(self) -> BundleMarks:
        await passed("bundle_marks")
        return await super().bundle_marks()

    async def doom_bundles(self, bundles: Sequence[str]) -> None:
        await passed("doom_bundles")
        await super().doom_bundles(bundles)

    async def claim_bundle(self, bundle: str, stamp: int) -> int | None:
        await passed("claim_bundle")
        return await super().claim_bundle(bundle, stamp)

    async def bundle_removed(self, bundle: str, stamp: int) -> None:
        await passed("bundle_removed")
        await super().bundle_removed(bundle, stamp)


class SteppedObjects(MemoryObjects):
    """Of a bundle, everything is said to have been written long ago."""

    failing = False
    """Deletions are carried out, and nobody hears of it."""

    async def put(self, key: str, data: bytes) -> bool:
        await passed("put")
        return await super().put(key, data)

    async def stat(self, key: str) -> ObjectVersion | None:
        await passed("stat")
        return await super().stat(key)

    async def written(self, prefix: str) -> Mapping[str, datetime]:
        await passed("written")
        return {key: datetime(2000, 1, 1, tzinfo=UTC) for key in await self.list(prefix)}

    def deletion(self, key: str) -> Deletion:
        prepared = super().deletion(key)

        async def delete() -> None:
            await passed("delete")
            await prepared()
            if self.failing:
                raise errors.ObjectStoreUnavailableError("no answer came")

        return delete


class BundleWorld:
    """Two replicas, which share a store and storage, and a clock that the test turns."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.store = SteppedStore()
        self.objects = SteppedObjects()
        self.objects.now = lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)
        updater = JobUpdater(self.store)
        nobody: Any = None
        self.service = JobService(
            self.store, updater, self.objects, watch=nobody, event_watch=nobody, boundaries=nobody, logs=nobody
        )
        self.collectors = [self.collector(), self.collector()]

    def collector(self) -> BundleCollector:
        return BundleCollector(self.store, self.objects, SETTINGS, monotonic=lambda: self.seconds)

    def collect(self, replica: int = 0) -> Actor:
        return Actor(self.collectors[replica].collect)

    def create(self, name: str = "j") -> Actor:
        job = Job(name=f"jobs/{name}", spec=JobSpec(entry_point="m:f", bundle=BUNDLE))
        decision = machine.create(job, uid=str(uuid4()), actor="ann", now=datetime.now(UTC))
        return Actor(lambda: self.service.create(decision, Call()))

    def upload(self) -> Actor:
        return Actor(self._upload)

    async def _upload(self) -> bool:
        """Does what UploadBundle does with the store and storage; returns whether it had not to wait."""
        wanted = await self.store.want_bundle(BUNDLE)
        if wanted is not None:
            await self.objects.put(KEY, b"code")
        return wanted is not None

    async def delete(self, name: str = "j") -> None:
        stored = await self.store.get(JobName(f"jobs/{name}"))
        if stored is not None:
            await self.store.commit(Change(job=JobName(f"jobs/{name}"), expected=stored.version, record=None))

    def is_there(self) -> bool:
        return KEY in self.objects.contents

    async def jobs(self) -> list[str]:
        stored, _ = await self.store.page(states=[], labels={}, size=1000, before=None)
        return sorted(each.record.job.name for each in stored if each.record.job.spec.bundle == BUNDLE)

    async def check(self) -> None:
        assert self.is_there() or not await self.jobs(), "the bundle of a job was removed"
