"""The long work for an assignment: bringing code and state to this machine, and snapshots to object storage.

Storage that is away is waited for, for as long as it takes: training goes on meanwhile, and a pause keeps its snapshot.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import structlog

from adjourn import reasons
from adjourn.errors import ObjectStoreUnavailableError
from adjourn.internal.v1.trainer_pb2 import HeldAssignment, Snapshot, TrainingStart
from adjourn.objects import ObjectStore
from adjourn.snapshots import SnapshotInvalid
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Failure
from adjourn_worker.attempt.files import write_start
from adjourn_worker.paths import WorkerPaths
from adjourn_worker.storage.bundles import BundleCorrupt, fetch_bundle
from adjourn_worker.storage.fetch import CheckpointCorrupt, fetch, read_manifest
from adjourn_worker.storage.manifest import Manifest
from adjourn_worker.storage.persist import SnapshotLost, persist

log: structlog.stdlib.BoundLogger = structlog.get_logger()
T = TypeVar("T")

BACKOFF_FIRST: Final = 0.5
BACKOFF_MOST: Final = 10.0
RESTORE: Final = "restore"
"""Directory, in the attempt's, of the snapshot to restore."""


class Unusable(Exception):
    """What was to be brought is there no more, or damaged: trying again would not help."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(reason=reason, message=message)


class StorageTasks:
    """Does the long work for all assignments of a worker."""

    def __init__(self, objects: ObjectStore, paths: WorkerPaths, threads: int) -> None:
        self.objects = objects
        self.paths = paths
        self.threads = threads
        """Of a training process that begins from scratch."""

    async def prepare(self, held: HeldAssignment) -> None:
        """Fetches code and checkpoint and writes the start file; raises Unusable."""
        assignment, directory = held.assignment, Path(held.directory)
        snapshots = self.paths.snapshot_directory(directory)
        start = TrainingStart(
            job=assignment.job,
            attempt=assignment.token.attempt,
            spec=assignment.spec,
            snapshot_directory=str(snapshots),
            notify_socket=str(self.paths.notify_socket),
            threads=self.threads,
            device_uuids=assignment.device_uuids,
            allow_inexact=assignment.allow_inexact,
        )
        try:
            for place in (directory, snapshots):
                await asyncio.to_thread(place.mkdir, mode=0o700, exist_ok=True)
            if assignment.spec.bundle:
                bundle = assignment.spec.bundle
                code = await retry_forever(lambda: fetch_bundle(self.objects, bundle, self.paths), "bundle")
                start.code_directory = str(code)
            if assignment.HasField("restore"):
                into = directory / RESTORE
                await retry_forever(lambda: fetch(self.objects, assignment.restore, into), "checkpoint")
                start.restore_directory = str(into)
                start.restore_digests.update(assignment.restore.component_digests)
            await asyncio.to_thread(write_start, directory, start)
        except BundleCorrupt as error:
            raise Unusable(reasons.BUNDLE_UNUSABLE, str(error)) from error
        except CheckpointCorrupt as error:
            raise Unusable(reasons.CHECKPOINT_CORRUPT, str(error)) from error
        except OSError as error:
            raise Unusable(reasons.LAUNCH_FAILED, f"cannot prepare the attempt: {error}") from error

    async def persist(
        self, held: HeldAssignment, snapshot: Snapshot, on_fraction: Callable[[float], None]
    ) -> Checkpoint:
        """Makes a snapshot durable; raises Unusable."""
        base = await self.base(held)
        try:
            return await retry_forever(
                lambda: persist(self.objects, held.assignment, snapshot, base, on_fraction), "persisting"
            )
        except (SnapshotLost, SnapshotInvalid) as error:
            raise Unusable(reasons.SNAPSHOT_FAILED, str(error)) from error

    async def clean_up(self, held: HeldAssignment) -> None:
        """Frees disk and memory of an attempt that is over; its log stays."""
        assignment = held.assignment
        log_file = self.paths.log(assignment.job, assignment.token.attempt)
        try:
            await asyncio.to_thread(self.paths.retire, Path(held.directory), log_file)
        except OSError as error:
            log.warning("not_put_away", directory=held.directory, error=str(error))  # the next agent tidies up

    async def base(self, held: HeldAssignment) -> Manifest | None:
        """Returns the newest registered checkpoint's manifest: its parts need no upload."""
        newest = held.persisted if held.HasField("persisted") else held.assignment.base
        if not newest.name:
            return None
        try:
            return await retry_forever(lambda: read_manifest(self.objects, newest), "manifest")
        except CheckpointCorrupt as error:
            log.warning("base_unusable", error=str(error))  # then every part is uploaded
            return None


async def retry_forever(work: Callable[[], Awaitable[T]], what: str) -> T:
    """Tries until storage answers."""
    failures = 0
    while True:
        try:
            return await work()
        except ObjectStoreUnavailableError as error:
            log.warning("object_store_away", doing=what, error=error.message, failures=failures)
        limit = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(failures, 10))
        failures += 1
        await asyncio.sleep(random.uniform(0, limit))  # noqa: S311  # jitter
