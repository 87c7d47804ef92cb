"""Reads what jobs have printed, and follows it: for callers, who have no key to object storage."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from adjourn import errors
from adjourn.channel import CHUNK_BYTES
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.objects import ObjectMissing, ObjectStore
from adjourn.stored_logs import SEGMENT_BYTES, Segment, StoredLog, attempt_prefix, logs_below, segment_key
from adjourn.v1.job_service_pb2 import StreamLogsRequest, StreamLogsResponse
from adjourn_control_plane.job.machine import ENDED, HELD
from adjourn_control_plane.store.interface import JobName, JobStore, JobUid
from adjourn_control_plane.store.notifier import Notifier

AT_ONCE: Final = 256
"""Callers that are read for at a time, by this process. Each has an object in memory."""
LOOK_SECONDS: Final = 0.5
"""How often to look for more, where somebody follows and something came just now."""
LOOK_MOST: Final = 1.0
"""The same, where nothing has come since the last look."""
FOLLOW_SECONDS: Final = 5.0
"""How often to say that somebody follows."""
LOOKS: Final = 5
"""How often to look anew, if what was there is replaced before it is read."""
LATE_SECONDS: Final = 5.0
"""How long to wait for the rest of a log whose attempt is over: it is stored after that is reported."""


class Logs:
    """Serves the readers of this replica."""

    def __init__(self, store: JobStore, objects: ObjectStore, notifier: Notifier, *, at_once: int = AT_ONCE) -> None:
        self.store = store
        self.objects = objects
        self.notifier = notifier
        self._free = at_once

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Takes one of the places for callers; raises TooManyReadsError if there is none."""
        if not self._free:
            raise errors.TooManyReadsError("other readers of logs use all the memory for them; try again")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def read(self, request: StreamLogsRequest, record: JobRecord) -> AsyncGenerator[StreamLogsResponse, None]:
        """Yields what a job has printed, and with `follow` what it prints, until it has ended.

        `record`: of the job, read just now. Raises InvalidRequestError, NotFoundError if the job is deleted meanwhile,
        ShuttingDownError, ObjectStoreUnavailableError, ObjectStoreRefusedError.
        """
        newest = record.token.attempt
        last = newest + 1 if request.follow else newest
        if request.attempt > last:
            known = f"the newest attempt of {record.job.name} is {newest}" if newest else "no attempt has begun yet"
            raise errors.InvalidRequestError({"attempt": f"must be 1 to {max(last, 1)}; {known}"})
        attempt = request.attempt or newest or last
        if not attempt:
            return
        reader = Reader(self, record, attempt=attempt, offset=request.offset, follow=request.follow)
        if request.HasField("tail_lines") and attempt <= newest:
            await reader.settled()
            reader.offset = await reader.tail(request.tail_lines)
        while True:
            async with aclosing(reader.responses()) as responses:
                async for response in responses:
                    yield response
            if not request.follow or (reader.record.job.state in ENDED and reader.attempt >= reader.newest):
                return
            reader.attempt, reader.offset, reader.end = reader.attempt + 1, 0, None


@dataclass
class Reader:
    """Reads for one caller."""

    logs: Logs
    record: JobRecord
    attempt: int
    offset: int
    follow: bool
    end: int | None = None
    """Bytes that the attempt has printed in all, once its log is whole."""
    followed_at: float = float("-inf")
    waited: bool = False
    """The rest of an attempt that is over is late: it is not waited for any longer."""

    @property
    def newest(self) -> int:
        return self.record.token.attempt

    @property
    def is_over(self) -> bool:
        """The attempt has ended, or was taken from its worker."""
        return self.newest > self.attempt or (self.newest == self.attempt and self.record.job.state not in HELD)

    @property
    def is_last(self) -> bool:
        """Nothing comes after this attempt, or what comes after it has begun: it is not waited for any longer."""
        return not self.follow or self.newest > self.attempt or self.record.job.state in ENDED

    async def responses(self) -> AsyncGenerator[StreamLogsResponse, None]:
        """Yields the log of the attempt; without `follow` what is stored now, or soon if the attempt is over."""
        over_since: float | None = None
        while True:
            await self.look_at_job()
            if self.attempt > self.newest and self.record.job.state in ENDED:
                return  # there will be no such attempt
            begin, answered = self.offset, True
            try:
                async with aclosing(self.next()) as responses:
                    async for response in responses:
                        yield response
            except errors.ObjectStoreUnavailableError:
                if not self.follow:
                    raise
                answered = False
            moved = self.offset > begin
            if self.end is not None and self.offset >= self.end:
                yield self.response(end=StreamLogsResponse.WHOLE)
                return
            if not self.is_over and not self.follow:
                return
            if self.is_over and self.is_last:
                now = time.monotonic()
                over_since = now if over_since is None or moved or not answered else over_since
                if self.waited or now - over_since >= LATE_SECONDS:
                    yield self.response(end=StreamLogsResponse.REST_MISSING)
                    return
            soon = moved or (self.is_over and self.is_last)
            await asyncio.sleep(LOOK_SECONDS if soon else LOOK_MOST)
            self.logs.notifier.check_open()

    def response(self, **fields: object) -> StreamLogsResponse:
        response = StreamLogsResponse(attempt=self.attempt, offset=self.offset, **fields)  # type: ignore[arg-type]
        response.next_offset = self.offset + len(response.data)
        return response

    async def look_at_job(self) -> None:
        """Reads the job anew, and has what it prints stored soon if it is followed. Raises NotFoundError."""
        name, uid = JobName(self.record.job.name), self.record.job.uid
        stored = await self.logs.store.get(name)
        if stored is None or stored.record.job.uid != uid:
            raise errors.NotFoundError(f"{name} was deleted", job=name)
        self.record = stored.record
        if self.follow and time.monotonic() - self.followed_at >= FOLLOW_SECONDS:
            await self.logs.store.follow(name, JobUid(uid), stored.record.job.worker)
            self.followed_at = time.monotonic()

    async def stored(self) -> tuple[str, StoredLog]:
        """Returns where the attempt's log is, and what is stored of it.

        A store that was set back may have given the attempt's number before; of older attempts the nonce is not known.
        """
        below = attempt_prefix(self.record.job.uid, self.attempt)
        logs = logs_below(below, await self.logs.objects.list(below))
        if self.attempt == self.newest:
            own = f"{below}{self.record.token.nonce[:8]}/"
            return own, logs.get(own, StoredLog())
        return max(logs.items(), key=lambda item: item[1].size, default=(below, StoredLog()))

    async def next(self) -> AsyncGenerator[StreamLogsResponse, None]:
        """Yields what is stored from where the reader is; notes the log's end."""
        if self.attempt > self.newest:
            return
        for _ in range(LOOKS):
            prefix, found = await self.stored()
            self.end = found.end
            while segment := found.after(self.offset):
                try:
                    data = await self.segment(prefix, segment)
                except ObjectMissing:  # another has taken its place, or it was left out: the next look tells
                    break
                begin = max(self.offset, segment.begin)
                left_out, self.offset = begin - self.offset, begin
                for start in range(begin - segment.begin, len(data), CHUNK_BYTES):
                    response = self.response(data=data[start : start + CHUNK_BYTES], left_out_bytes=left_out)
                    self.offset, left_out = response.next_offset, 0
                    self.logs.notifier.check_open()  # somebody for whom there is always more must not hold up a drain
                    yield response
            else:
                return
        raise errors.ObjectStoreUnavailableError(f"an object below {prefix} is listed, and is not there")

    async def segment(self, prefix: str, segment: Segment) -> bytes:
        return await self.logs.objects.get(segment_key(prefix, segment), limit=SEGMENT_BYTES)

    async def settled(self) -> None:
        """Returns once the log of an attempt that is over is whole, or its rest is late; at once of one that runs."""
        deadline = time.monotonic() + LATE_SECONDS
        while True:
            await self.look_at_job()
            if not self.is_over or (await self.stored())[1].end is not None:
                return
            if time.monotonic() >= deadline:
                self.waited = True
                return
            await asyncio.sleep(LOOK_SECONDS)
            self.logs.notifier.check_open()

    async def tail(self, lines: int) -> int:
        """Returns where the last so many lines of what is stored begin; a line at the end needs no newline."""
        for _ in range(LOOKS):
            prefix, found = await self.stored()
            with suppress(ObjectMissing):
                return await self.tail_of(prefix, found, lines)
        raise errors.ObjectStoreUnavailableError(f"an object below {prefix} is listed, and is not there")

    async def tail_of(self, prefix: str, found: StoredLog, lines: int) -> int:
        cursor = end = found.stored
        if not lines:
            return end
        wanted = lines  # newlines to find; one at the very end begins no line
        for segment in sorted(found.segments, key=lambda each: (-each.end, each.begin)):
            if segment.begin >= cursor:
                continue  # it is in one that was looked at
            data = (await self.segment(prefix, segment))[: cursor - segment.begin]
            if cursor == end and data.endswith(b"\n"):
                wanted += 1
            place = len(data)
            while wanted and (place := data.rfind(b"\n", 0, place)) >= 0:
                wanted -= 1
            if not wanted:
                return segment.begin + place + 1
            cursor = segment.begin
        return 0
