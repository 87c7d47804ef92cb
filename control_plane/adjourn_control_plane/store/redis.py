"""The store on Redis or Valkey; the only module that imports redis.

redis-py repeats a command whose answer was lost, so every write is one Lua script that is safe to repeat: a commit and
an attachment are remembered by id for a while, the rest is idempotent. Reads that must fit together are one script too.

    {ns}:version                    counter of versions and numbers
    {ns}:jobs  {ns}:state:{STATE}   sorted sets of jobs, by number
    {ns}:jobs/x                     hash: record, version, number, and what the indexes hold of it
    {ns}:jobs/x:events              list of the newest;  :epochs  sorted set of EpochMetrics, by epoch
    {ns}:jobs/x:samples  :steps     sorted sets of ResourceSample, by ms since 1970, and of StepMetrics, by step
    {ns}:jobs/x:checkpoints         hash by name;  :registered  sorted set of names, in order of registration
    {ns}:jobs/x:retired             hash by name, of checkpoints whose objects may not be gone
    {ns}:retention                  sorted set of jobs whose checkpoints are to be looked at, by the version that asked
    {ns}:workers  {ns}:workers:lost  set of workers that are not lost; sorted set of the others, by ms since 1970
    {ns}:workers:holding            set of workers that hold jobs
    {ns}:workers/y                  hash: what Session holds
    {ns}:workers/y:jobs             set;  :allocation  version of its newest change
    {ns}:workers/y:unconfirmed_releases  hash by job: attempts on it that are unconfirmed
    {ns}:changes  {ns}:notifications  stream of all changes; channel that tells of them
    {ns}:events  {ns}:events:number  stream of all events; counter of them
    {ns}:delivery:lease  :token     who delivers events to the webhook, expires; up to which event they are delivered
    {ns}:tombstones                 set of the uids of deleted jobs whose objects may not be gone yet
    {ns}:tombstones:later           sorted set of `{looks} {uid}` that are to be looked at again, by ms since 1970
    {ns}:deleted                    sorted set of the uids of deleted jobs, in order
    {ns}:bundles:doomed  :removing  sorted sets of the bundles on their way out, by stamp;  :steps  counter of stamps
    {ns}:followed:{uid}             somebody reads what the job of the uid prints as it comes; expires
    {ns}:requests                   sorted set of the ids of requests, in order
    {ns}:newest:{instance}          number of the newest stream of the agents of an instance; expires
    {ns}:request:{id}  :done:{id}   hash: digest, answer, settled; result of a change, for its repeats; both expire

The namespace is the hash tag of all its keys: one slot of a cluster holds them, so scripts may touch them together.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import datetime, timedelta
from importlib import resources
from typing import Any, Self, TypeVar
from uuid import uuid4

import structlog
from redis import exceptions
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from adjourn import failpoints
from adjourn.errors import StoreUnavailableError
from adjourn.v1.agent_service_pb2 import SeriesPart
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics, ResourceSample, StepMetrics
from adjourn.v1.worker_pb2 import Drain, Worker
from adjourn_control_plane.store import redis_codec as values
from adjourn_control_plane.store.interface import (
    EVENTS_KEPT,
    FOLLOWED,
    PURGE_AGAIN,
    SERIES_KEPT,
    STREAM_MEMORY,
    Allocation,
    BundleMarks,
    BundlesRemoved,
    Change,
    Changed,
    Conflict,
    Fence,
    Fenced,
    Happened,
    JobName,
    JobUid,
    RequestSeen,
    SeriesLimits,
    Session,
    Stored,
    TokenTooOld,
    Tombstone,
    Unconfirmed,
    WorkerName,
)
from adjourn_control_plane.store.redis_checks import SETTINGS, shortcomings

log = structlog.get_logger()

LONGEST_WAIT, SOCKET_WAIT, REPEATS = 10.0, 5.0, 3
"""Seconds for an answer, repeats included; then the store counts as unavailable. Seconds for one attempt."""
SILENCE = 5.0
"""Seconds without a notification after which the server is asked whether it is there."""
CONNECTIONS = 50
CHANGES_KEPT = 100_000
"""Entries that the stream of changes holds at least."""
BATCH = 200
"""Jobs or workers read at a time: a script holds up everybody else."""
SCRIPTS = (
    *("commit", "settle", "events", "series", "page", "allocation"),
    *("tombstones", "remove_tombstone", "bundles", "want_bundle", "doom_bundles", "claim_bundle", "bundle_removed"),
    *("reviewed", "hold_delivery", "note_delivered", "release_delivery"),
    *("attach", "heartbeat", "detach", "mark_lost", "sessions", "lost_holders", "forget", "forget_lost", "drain"),
)
LATER = (
    OSError,  # TimeoutError is one
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
)
LATER_CODES = ("BUSY", "MISCONF", "NOREPLICAS")  # have no class
"""Errors of a server that may be able to later."""
NAMESPACE = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)

T = TypeVar("T")
Entry = tuple[bytes, dict[bytes, bytes]]
"""Of a stream: its id, its fields."""


class RedisStore:
    """A JobStore; see `adjourn_control_plane.store.interface` for what its methods do."""

    def __init__(
        self,
        url: str,
        namespace: str,
        *,
        changes_kept: int = CHANGES_KEPT,
        events_kept: int = EVENTS_KEPT,
        series: SeriesLimits = SERIES_KEPT,
    ) -> None:
        """Takes `redis://[:password@]host:port/0`; a connection is made when one is first needed."""
        if not NAMESPACE.fullmatch(namespace):
            raise ValueError(f"namespace {namespace!r}: only letters, digits, dot, underscore and hyphen")
        patience = {"socket_timeout": SOCKET_WAIT, "socket_connect_timeout": SOCKET_WAIT, "protocol": 2}
        backoff = ExponentialWithJitterBackoff(base=0.05, cap=0.5)
        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=SOCKET_WAIT, retry=Retry(backoff, REPEATS), **patience
        )
        self._redis = Redis.from_pool(pool)
        # Listening takes no connections from commands; it has its own way to come back.
        self._listener = Redis.from_pool(ConnectionPool.from_url(url, retry=Retry(backoff, 0), **patience))
        self._command: Callable[..., Awaitable[Any]] = self._redis.execute_command
        folder = resources.files("adjourn_control_plane.store") / "scripts"
        self._scripts = {name: self._redis.register_script((folder / f"{name}.lua").read_bytes()) for name in SCRIPTS}
        self._prefix = f"{{{namespace}}}"
        self._changes_kept, self._events_kept, self._series = changes_kept, events_kept, series
        self._closed = False
        self._waits: dict[asyncio.Timeout, None] = {}
        """Of the commands under way."""
        self._idle = asyncio.Event()
        """Set when the last of them has ended."""

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, namespace: str) -> AsyncIterator[Self]:
        """Opens the store, and closes it in the end."""
        async with aclosing(cls(url, namespace)) as store:
            yield store

    async def aclose(self) -> None:
        """Ends what waits for an answer, first: a command whose connection is closed would make another."""
        self._closed = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0)
        if self._waits:
            self._idle.clear()
            await self._idle.wait()
        await self._listener.aclose()
        await self._redis.aclose()

    async def ping(self) -> None:
        await self._answer(self._redis.ping())

    async def durability(self) -> list[str]:
        """Returns what the server would not keep, a sentence each; empty if it keeps all that it has accepted."""
        try:
            settings = await self._answer(self._command("CONFIG GET", *SETTINGS))
        except exceptions.ResponseError as error:
            return [f"Whether the store keeps what it accepts cannot be checked: {error}"]
        return shortcomings(settings)

    async def get(self, job: JobName) -> Stored | None:
        row = await self._ask("HMGET", job, *values.RECORD_FIELDS)
        return values.stored(row) if None not in row else None

    async def commit(self, change: Change) -> int:
        arguments = values.commit_arguments(change, changes_kept=self._changes_kept, events_kept=self._events_kept)
        failpoints.hit("control-plane.before-commit")
        outcome, *rest = await self._run("commit", *arguments)
        failpoints.hit("control-plane.after-commit")
        match outcome:
            case b"DONE":
                return int(rest[0])
            case b"SEEN":
                raise RequestSeen(rest[0].decode(), Job.FromString(rest[1]))
            case b"FENCED":
                raise Fenced(rest[0].decode())
            case b"BUNDLE":
                raise BundlesRemoved(rest[0].decode())
            case _:
                raise Conflict(rest[0].decode())

    async def answered(self, request_id: str) -> tuple[str, Job] | None:
        digest, answer = await self._ask("HMGET", f"request:{request_id}", "digest", "answer")
        return (digest.decode(), Job.FromString(answer)) if digest is not None else None

    async def settle(self, request_id: str, answer: Job) -> Job | None:
        kept = await self._run("settle", request_id, values.encoded(answer))
        return Job.FromString(kept) if kept is not None else None

    async def page(
        self, *, states: Sequence[Job.State.ValueType], labels: dict[str, str], size: int, before: int | None
    ) -> tuple[list[Stored], int | None]:
        indexes = [f"state:{Job.State.Name(state)}" for state in dict.fromkeys(states)] or ["jobs"]
        batch = max(BATCH, size + 1) if labels else size + 1  # one more than asked for tells whether there is more
        found: list[Stored] = []
        while len(found) <= size:
            read = await self._newest(indexes, before, batch)
            found += [item for item in read if labels.items() <= dict(item.record.job.labels).items()]
            if len(read) < batch:
                break
            before = read[-1].record.number
        return found[:size], found[size - 1].record.number if len(found) > size else None

    async def queued(self) -> AsyncGenerator[list[Stored], None]:
        before = None
        while read := await self._newest(["state:QUEUED"], before, BATCH):
            before = read[-1].record.number
            yield read

    async def _newest(self, indexes: list[str], before: int | None, size: int) -> list[Stored]:
        below = "+inf" if before is None else f"({before}"
        return [values.stored(row) for row in await self._run("page", below, size, *indexes)]

    async def allocation(self, worker: WorkerName) -> Allocation:
        version, rows = await self._run("allocation", worker)
        jobs = sorted((values.stored(row) for row in rows), key=lambda item: item.record.number)
        return Allocation(worker=worker, version=int(version), jobs=jobs)

    async def unconfirmed(self, worker: WorkerName) -> list[Unconfirmed]:
        return values.unconfirmed(await self._ask("HGETALL", f"{worker}:unconfirmed_releases"))

    async def events(self, job: JobName, *, after: int, size: int) -> list[JobEvent]:
        return [JobEvent.FromString(row) for row in await self._run("events", job, after, size)]

    async def epochs(self, job: JobName, *, after: int, size: int) -> list[EpochMetrics]:
        rows = await self._ask("ZRANGEBYSCORE", f"{job}:epochs", f"({after}", "+inf", "LIMIT", 0, size)
        return [EpochMetrics.FromString(row) for row in rows]

    async def add_series(self, part: SeriesPart, fence: Fence) -> bool:
        return bool(await self._run("series", *values.series_arguments(part, fence, self._series)))

    async def samples(
        self, job: JobName, *, start: datetime | None = None, end: datetime | None = None
    ) -> list[ResourceSample]:
        low = values.since_1970(start) if start is not None else "-inf"
        high = values.since_1970(end) if end is not None else "+inf"
        return [ResourceSample.FromString(row) for row in await self._ask("ZRANGEBYSCORE", f"{job}:samples", low, high)]

    async def steps(self, job: JobName, *, start: int = 0, end: int | None = None) -> list[StepMetrics]:
        high = end if end is not None else "+inf"
        return [StepMetrics.FromString(row) for row in await self._ask("ZRANGEBYSCORE", f"{job}:steps", start, high)]

    async def checkpoints(self, job: JobName, *, size: int, before: int | None = None) -> list[tuple[int, Checkpoint]]:
        below = "+inf" if before is None else f"({before}"
        found = await self._ask("ZREVRANGEBYSCORE", f"{job}:registered", below, "-inf", "WITHSCORES", "LIMIT", 0, size)
        names, numbers = found[::2], found[1::2]
        if not names:
            return []
        rows = await self._ask("HMGET", f"{job}:checkpoints", *names)
        return [
            (int(number), Checkpoint.FromString(row))
            for number, row in zip(numbers, rows, strict=True)
            if row is not None  # deleted in between
        ]

    async def checkpoint(self, job: JobName, name: str) -> Checkpoint | None:
        row = await self._ask("HGET", f"{job}:checkpoints", name)
        return Checkpoint.FromString(row) if row is not None else None

    async def retired(self, job: JobName) -> list[Checkpoint]:
        return [Checkpoint.FromString(row) for row in await self._ask("HVALS", f"{job}:retired")]

    async def forget_retired(self, job: JobName, names: Sequence[str]) -> None:
        if names:
            await self._ask("HDEL", f"{job}:retired", *names)

    async def to_review(self, *, size: int) -> list[tuple[JobName, int]]:
        found = await self._ask("ZRANGE", "retention", 0, size - 1, "WITHSCORES")
        return [(JobName(job.decode()), int(version)) for job, version in zip(found[::2], found[1::2], strict=True)]

    async def reviewed(self, job: JobName, version: int) -> None:
        await self._run("reviewed", job, version)

    async def latest_token(self) -> str:
        return await self._newest_entry("changes")

    async def changes(self, after: str, *, size: int) -> list[Changed]:
        # The first change of all had version 1.
        return [values.changed(*entry) for entry in await self._entries_after("changes", after, size, b"version")]

    async def latest_event_token(self) -> str:
        return await self._newest_entry("events")

    async def happened(self, after: str, *, size: int) -> list[Happened]:
        if after:
            entries = await self._entries_after("events", after, size, b"number")
        else:
            entries = await self._ask("XRANGE", "events", "-", "+", "COUNT", size)
        return [values.happened(*entry) for entry in entries]

    async def hold_delivery(self, holder: str, lease: timedelta) -> str | None:
        token = await self._run("hold_delivery", holder, values.milliseconds(lease))
        return token.decode() if token is not None else None

    async def note_delivered(self, holder: str, token: str) -> bool:
        return bool(await self._run("note_delivered", holder, token))

    async def release_delivery(self, holder: str) -> None:
        await self._run("release_delivery", holder)

    async def _newest_entry(self, stream: str) -> str:
        newest = await self._ask("XREVRANGE", stream, "+", "-", "COUNT", 1)
        return newest[0][0].decode() if newest else values.START

    async def _entries_after(self, stream: str, after: str, size: int, numbered: bytes) -> list[Entry]:
        """Returns up to `size` entries of a stream after one of them.

        `numbered`: the field that is 1 in the first entry of all. Raises TokenTooOld, and ValueError.
        """
        if not values.is_token(after):
            raise ValueError(f"{after!r} is no token of this store")
        # The token's own entry is read along: while it is there, nothing after it can have been trimmed.
        entries: list[Entry] = await self._ask("XRANGE", stream, after, "+", "COUNT", size + 1)
        if after != values.START:
            if not entries or entries[0][0].decode() != after:
                raise TokenTooOld(after)
            entries = entries[1:]
        elif entries and entries[0][1][numbered] != b"1":
            raise TokenTooOld(after)
        return entries[:size]

    async def notifications(self) -> AsyncGenerator[tuple[JobName, WorkerName], None]:
        backoff = ExponentialWithJitterBackoff(base=0.05, cap=1)
        failures = 0
        while not self._closed:
            try:
                async with self._listener.pubsub() as channel:
                    await channel.subscribe(self._key("notifications"))
                    while not self._closed:
                        notification = await heard(channel)
                        failures = 0
                        yield notification
            except (exceptions.RedisError, OSError) as error:
                failures += 1
                if failures == 1 and not self._closed:
                    log.warning("store_notifications_interrupted", error=str(error))
                await asyncio.sleep(backoff.compute(failures))

    async def attach(self, worker: Worker, session: str, stream: str, *, opened: int = 0) -> bool:
        what = (worker.name, values.described(worker), session, stream, values.REPEAT_MEMORY, worker.instance, opened)
        outcome = await self._run("attach", *what, int(STREAM_MEMORY.total_seconds()))
        if outcome == 2:  # as attach.lua says
            raise Fenced(f"a newer stream than {stream} has spoken for {worker.name}")
        return bool(outcome)

    async def heartbeat(self, worker: Worker, stream: str, *, ready: bool = True) -> bool:
        return bool(await self._run("heartbeat", worker.name, values.described(worker), stream, int(ready)))

    async def detach(self, worker: WorkerName, stream: str) -> None:
        await self._run("detach", worker, stream)

    async def mark_lost(self, worker: WorkerName, heartbeat: int) -> bool:
        return bool(await self._run("mark_lost", worker, heartbeat))

    async def sessions(self) -> list[Session]:
        lost = await self._ask("ZRANGE", "workers:lost", 0, -1)
        return await self._described(dict.fromkeys([*await self._ask("SMEMBERS", "workers"), *lost]))

    async def live_sessions(self) -> list[Session]:
        return [item for item in await self._described(await self._ask("SMEMBERS", "workers")) if not item.lost]

    async def _described(self, workers: Iterable[bytes]) -> list[Session]:
        found: list[Session] = []
        names = sorted(workers)
        for start in range(0, len(names), BATCH):
            rows = await self._run(
                "sessions", len(values.SESSION_FIELDS), *values.SESSION_FIELDS, *names[start : start + BATCH]
            )
            found += [item for row in rows if (item := values.session(row)) is not None]  # None: forgotten in between
        return found

    async def session(self, worker: WorkerName) -> Session | None:
        return values.session(await self._ask("HMGET", worker, *values.SESSION_FIELDS))

    async def order_drain(self, worker: WorkerName, drain: Drain | None) -> bool:
        return bool(await self._run("drain", worker, values.encoded(drain) if drain is not None else ""))

    async def lost_holders(self) -> list[WorkerName]:
        found = await self._run("lost_holders")
        return sorted(WorkerName(worker.decode()) for worker in found)

    async def forget(self, worker: WorkerName) -> bool:
        return bool(await self._run("forget", worker))

    async def forget_lost(self, age: timedelta, *, size: int) -> list[WorkerName]:
        found = await self._run("forget_lost", values.milliseconds(age), size)
        return [WorkerName(worker.decode()) for worker in found]

    async def tombstones(self, *, size: int = 1000) -> list[Tombstone]:
        found = await self._run("tombstones", size, values.milliseconds(max(PURGE_AGAIN)))
        return sorted(values.tombstone(row) for row in found)

    async def remove_tombstone(self, tombstone: Tombstone) -> None:
        last = tombstone.looks >= len(PURGE_AGAIN)
        again = "" if last else values.milliseconds(PURGE_AGAIN[tombstone.looks])
        await self._run("remove_tombstone", tombstone.uid, tombstone.looks, again)

    async def add_tombstone(self, uid: JobUid) -> None:
        await self._ask("SADD", "tombstones", uid)

    async def want_bundle(self, bundle: str) -> int | None:
        steps: int | None = await self._run("want_bundle", bundle)
        return steps

    async def bundle_marks(self) -> BundleMarks:
        doomed, removing = await self._run("bundles")
        return BundleMarks(doomed=values.stamps(doomed), removing=values.stamps(removing))

    async def doom_bundles(self, bundles: Sequence[str]) -> None:
        await self._run("doom_bundles", *bundles)

    async def claim_bundle(self, bundle: str, stamp: int) -> int | None:
        claim: int | None = await self._run("claim_bundle", bundle, stamp, uuid4().hex, values.REPEAT_MEMORY)
        return claim

    async def bundle_removed(self, bundle: str, stamp: int) -> None:
        await self._run("bundle_removed", bundle, stamp)

    async def deleted(self, uids: Sequence[JobUid]) -> set[JobUid]:
        times = await self._ask("ZMSCORE", "deleted", *uids) if uids else []
        return {uid for uid, time in zip(uids, times, strict=True) if time is not None}

    async def follow(self, job: JobName, uid: JobUid, worker: str) -> None:
        is_news = await self._ask("SET", f"followed:{uid}", 1, "EX", int(FOLLOWED.total_seconds()), "GET") is None
        if is_news and worker:
            await self._ask("PUBLISH", "notifications", f"{job} {worker}")

    async def followed(self, uids: Sequence[JobUid]) -> set[JobUid]:
        keys = [self._key(f"followed:{uid}") for uid in uids]
        found = await self._answer(self._command("MGET", *keys)) if keys else []
        return {uid for uid, value in zip(uids, found, strict=True) if value is not None}

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    async def _run(self, script: str, *args: bytes | str | int) -> Any:
        return await self._answer(self._scripts[script](keys=[self._prefix], args=args))

    async def _ask(self, command: str, name: str, *args: bytes | str | int) -> Any:
        return await self._answer(self._command(command, self._key(name), *args))

    async def _answer(self, call: Awaitable[T]) -> T:
        """Waits for an answer of the server; raises StoreUnavailableError if there is none, or it cannot."""
        wait = asyncio.timeout(0 if self._closed else LONGEST_WAIT)
        try:
            async with wait:
                self._waits[wait] = None
                return await call
        except LATER as error:
            why = "it is closed here" if self._closed else str(error) or "no answer in time"
            raise self._unavailable(why) from error
        except exceptions.ResponseError as error:
            if not str(error).startswith(LATER_CODES):
                raise
            raise self._unavailable(str(error)) from error
        finally:
            self._waits.pop(wait, None)
            if not self._waits:
                self._idle.set()

    def _unavailable(self, why: str) -> StoreUnavailableError:
        pool = self._redis.connection_pool.connection_kwargs
        address = pool.get("path") or f"{pool.get('host', 'localhost')}:{pool.get('port', 6379)}"
        return StoreUnavailableError(f"The store at {address} is unavailable: {why}", store=address)


async def heard(channel: PubSub) -> tuple[JobName, WorkerName]:
    """Waits for what a subscription says, ("", "") at its start; raises a redis error if the connection is dead."""
    while True:
        message = await channel.get_message(timeout=SILENCE)
        if message is None:
            await channel.ping()
            message = await channel.get_message(timeout=SOCKET_WAIT)
        match message:
            case None:
                raise exceptions.TimeoutError("no answer to a ping")
            case {"type": "subscribe"}:
                return JobName(""), WorkerName("")
            case {"type": "message", "data": bytes(data)}:
                job, worker = data.decode().split(" ")
                return JobName(job), WorkerName(worker)
