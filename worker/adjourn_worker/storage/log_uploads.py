"""What training processes print, stored while they do: soon if somebody follows, else now and then, whole in the end.

Nothing waits for it: neither training, nor the end of an attempt, nor a pause. Storage that is away is asked again, and
the log follows. One part is on its way at a time, so that checkpoints keep the other connections.

A note, a file with the log's place in storage, is there from the attempt's beginning until its log is whole. An agent
that finds notes of attempts which it does not hold goes on with their logs. What is stored it learns from storage.
"""

import asyncio
import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from adjourn import failpoints
from adjourn.errors import AdjournError
from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.objects import STORAGE_ERRORS, ObjectStore
from adjourn.stored_logs import Segment, end_key, log_prefix, segment_key, stored_log
from adjourn_worker.attempt import files, training_log
from adjourn_worker.paths import WorkerPaths
from adjourn_worker.storage import log_plan

log: structlog.stdlib.BoundLogger = structlog.get_logger()

LOOK_SECONDS: Final = 0.5
"""How often logs are looked at."""
AGAIN_SECONDS: Final = 2.0
"""How long storage that fails is left alone."""


class LogGone(Exception):
    """There is no log, though there was: the rest of it will never be stored."""


class LogCut(Exception):
    """A log was cut back while it was read; the next look finds its place."""


@dataclass(eq=False)
class Upload:
    """The log of one attempt on its way."""

    name: str
    prefix: str
    """Where it is stored."""
    job_uid: str
    places: tuple[Path, ...]
    """Where it is on the disk: the first of these that is there."""
    over: bool = False
    """Nothing more is printed."""
    launched: bool = True
    """It may have printed something."""
    stored: list[Segment] | None = None
    """None: not known yet."""
    stored_at: float = float("-inf")
    """When something of it was stored last, by the clock of the event loop."""
    lead: int = 0
    """Bytes that a log which was cut back was longer before: a byte's place in the log, less its place in the file."""
    readable_from: int = 0
    """What comes before was cut back, or is in another place of the file by now."""

    @property
    def done(self) -> int:
        """Bytes up to which it is stored."""
        return max((segment.end for segment in self.stored or ()), default=0)

    @contextlib.contextmanager
    def opened(self) -> Iterator[int | None]:
        """Opens the log to be read; None: there is none."""
        descriptor = None
        for place in self.places:  # it may go from one to the next meanwhile, not back
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(place, os.O_RDONLY)
                break
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def size(self, descriptor: int) -> int:
        """Returns how many bytes were printed so far."""
        return os.fstat(descriptor).st_size + self.lead

    def follow_cut(self, descriptor: int) -> None:
        """Finds its place in a log that is shorter than it was; what is printed from now on comes behind the rest.

        The launcher cuts a log back where the file system knows no holes. So may training code.
        """
        length = os.fstat(descriptor).st_size
        if length + self.lead < self.done:
            self.lead = self.readable_from = self.done
            self.lead -= length


@dataclass(kw_only=True)
class LogUploads:
    """Stores the logs of a worker's attempts."""

    objects: ObjectStore
    paths: WorkerPaths
    limit: int
    """Most bytes that are kept of a log."""
    uploads: dict[str, Upload] = field(default_factory=dict)
    """By the name of their attempt."""
    followed: frozenset[str] = frozenset()
    """Uids of jobs whose logs somebody reads as they come."""
    failing: bool = False
    """Storage did not take the last part."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, held: HeldAssignment) -> None:
        """Begins with the log of an attempt, or goes on with it."""
        attempt = Path(held.directory)
        token = held.assignment.token
        upload = self.upload(attempt.name, log_prefix(token), token.job_uid)
        self.uploads[upload.name] = upload
        try:
            (self.paths.unstored_logs / upload.name).write_text(f"{token.job_uid} {upload.prefix}")
        except OSError as error:  # this agent knows without it
            log.warning("log_not_noted", attempt=upload.name, error=str(error))

    def upload(self, name: str, prefix: str, job_uid: str) -> Upload:
        places = (self.paths.attempts / name / files.LOG, self.paths.logs / f"{name}.log")
        return Upload(name=name, prefix=prefix, job_uid=job_uid, places=places)

    def recover(self) -> None:
        """Goes on with logs of attempts that an earlier agent held to their end; after `take` for those held now."""
        for note in sorted(self.paths.unstored_logs.iterdir()):
            if note.name not in self.uploads:
                job_uid, _, prefix = note.read_text().partition(" ")
                if prefix.startswith(f"logs/{job_uid}/"):
                    self.uploads[note.name] = self.upload(note.name, prefix, job_uid)
                    self.uploads[note.name].over = True
                else:  # it was written halfway, as the machine went down
                    note.unlink(missing_ok=True)

    def end(self, name: str, *, launched: bool) -> None:
        """Notes that an attempt is over, and its log in its last place, if it was launched ever."""
        if name in self.uploads:
            self.uploads[name].over, self.uploads[name].launched = True, launched
            self.changed.set()

    def follow(self, job_uids: Collection[str]) -> None:
        """Has the logs of these jobs stored soon, and of no others."""
        wanted = frozenset(job_uids)
        if wanted - self.followed:
            self.changed.set()
        self.followed = wanted

    @property
    def settled(self) -> bool:
        """The logs of all attempts that are over are whole, or storage fails."""
        return self.failing or not any(upload.over for upload in self.uploads.values())

    async def settle(self, seconds: float) -> None:
        """Waits until logs are settled."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.settled:
                    self.changed.set()
                    await asyncio.sleep(0.02)  # for a short while, as the agent ends

    async def run(self) -> None:
        """Stores logs until cancelled."""
        while True:
            self.changed.clear()
            busy = await self.turn()
            if busy:
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_SECONDS if self.failing else LOOK_SECONDS):
                    await self.changed.wait()

    async def turn(self) -> bool:
        """Stores a part of each log that has one to store; returns whether there may be more."""
        busy = False
        for upload in list(self.uploads.values()):
            try:
                busy |= await self.advance(upload)
            except STORAGE_ERRORS as error:
                self.failed(error)
                return False
            except LogGone:
                log.warning("log_gone", attempt=upload.name)
                await self.forget(upload)
            except LogCut:
                busy = True
            except OSError as error:
                log.warning("log_not_read", attempt=upload.name, error=str(error))
            except Exception:  # a log is no reason to end an agent
                log.exception("log_not_stored", attempt=upload.name)
                await self.forget(upload)
        if self.failing:
            self.failing = False
            log.info("logs_stored_again")
        return busy

    def failed(self, error: AdjournError) -> None:
        if not self.failing:
            log.warning("logs_wait_for_storage", error=error.message)
        self.failing = True

    async def advance(self, upload: Upload) -> bool:
        """Stores the next part of a log if it is due, and its end; returns whether there may be more to store."""
        if upload.stored is None:
            upload.stored = list(stored_log(upload.prefix, await self.objects.list(upload.prefix)).segments)
        now = asyncio.get_running_loop().time()
        part, data = await asyncio.to_thread(self.next, upload, now - upload.stored_at)
        if part is None:
            if upload.over:
                await self.finish(upload)
            return False
        await self.objects.put(segment_key(upload.prefix, part), data)
        failpoints.hit("worker.log-stored")
        upload.stored_at = now
        old = log_plan.superseded(upload.stored, part)
        upload.stored = sorted({*upload.stored, part} - {*old})
        cut = log_plan.beyond_limit(upload.stored, self.limit)
        upload.stored = sorted({*upload.stored} - {*cut})
        await self.objects.delete([segment_key(upload.prefix, each) for each in (*old, *cut)])
        return True

    def next(self, upload: Upload, seconds: float) -> tuple[Segment | None, bytes]:
        """Returns the part of a log that is to be stored now, and its bytes; None: no part is.

        `seconds`: since something of it was stored last. Reads the disk; raises LogGone, LogCut, OSError.
        """
        with upload.opened() as descriptor:
            if descriptor is None:
                if upload.over and upload.launched:
                    raise LogGone
                return None, b""  # nothing was launched yet, or ever
            upload.follow_cut(descriptor)
            size = upload.size(descriptor)
            followed = upload.job_uid in self.followed
            if not log_plan.is_due(size - upload.done, seconds, followed=followed, over=upload.over):
                return None, b""
            stored, readable_from = upload.stored or (), upload.readable_from
            while part := log_plan.next_part(stored, size, self.limit, readable_from=readable_from):
                data = os.pread(descriptor, part.size, part.begin - upload.lead)
                size = upload.size(descriptor)
                if len(data) < part.size:
                    raise LogCut
                if log_plan.is_intact(part, size, self.limit):
                    return part, data
        return None, b""

    async def finish(self, upload: Upload) -> None:
        """Says that a log is whole, and leaves of it on the disk what is kept."""
        await self.objects.put(end_key(upload.prefix, upload.done), b"end")
        if upload.places[-1].exists():
            await asyncio.to_thread(training_log.compact, upload.places[-1], self.limit)
        await self.forget(upload)

    async def forget(self, upload: Upload) -> None:
        await asyncio.to_thread((self.paths.unstored_logs / upload.name).unlink, missing_ok=True)
        self.uploads.pop(upload.name, None)  # after that: an agent that drains ends once it holds none
