"""The long work for an assignment: bringing code and state to this machine, and snapshots to object storage.

Storage that is away is waited for, for as long as it takes: training goes on meanwhile, and a pause keeps its snapshot.
Storage that refuses is asked again too, as somebody may mend it. Both are shown on the job as a condition.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog

from adjourn import outputs, reasons
from adjourn.errors import ObjectStoreRefusedError, ObjectStoreUnavailableError
from adjourn.internal.v1.trainer_pb2 import HeldAssignment, Snapshot, TrainingStart
from adjourn.kept_snapshots import KEPT, make_room, oldest_first
from adjourn.manifests import manifest_prefix
from adjourn.objects import STORAGE_ERRORS, ObjectStore
from adjourn.outputs import OutputsInvalid
from adjourn.snapshots import SnapshotInvalid
from adjourn.v1.agent_service_pb2 import Assignment, ConditionChange
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, Failure, JobSpec
from adjourn.v1.manifest_pb2 import Manifest
from adjourn_worker.attempt.files import CODE, DATA, OUTPUT, WORK, write_start
from adjourn_worker.host.disk import FULL, Disk
from adjourn_worker.paths import Kept, WorkerPaths, free_bytes, remove, used_bytes
from adjourn_worker.storage.background import Background
from adjourn_worker.storage.bundles import BundleCorrupt, fetch_bundle
from adjourn_worker.storage.fetch import CheckpointCorrupt, fetch, is_here, read_manifest
from adjourn_worker.storage.kept import claim, keep, kept_uid
from adjourn_worker.storage.parts import DAMAGE_AGAIN_SECONDS, DAMAGE_LOOKS, KeyTaken, PartStore, never
from adjourn_worker.storage.persist import SnapshotDiffers, SnapshotLost, persist
from adjourn_worker.storage.venvs import VenvFailed, VenvMaker

log: structlog.stdlib.BoundLogger = structlog.get_logger()
T = TypeVar("T")

SNAPSHOT_SLOTS: Final = 3
"""Most snapshots of an attempt at a time: two in turn, and the last one."""
BACKOFF_FIRST: Final = 0.5
BACKOFF_MOST: Final = 10.0
SHOWN_SECONDS: Final = 3.0
"""How long a call fails before the job shows it."""
CALM_SECONDS: Final = 10.0
"""How long no try fails before the job shows it no more, while the work goes on."""
"""Directory, in the attempt's, of the user's code."""
RESTORE: Final = "restore"
"""Directory, in the attempt's, of the snapshot to restore, if memory has no room for it."""

OnCondition = Callable[[ConditionChange], None]
"""Hears when a condition of the job begins, changes or ends."""


class Unusable(Exception):
    """What was to be brought is there no more, or damaged: trying again would not help."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(reason=reason, message=message)


class StorageTasks:
    """Does the long work for all assignments of a worker."""

    def __init__(
        self,
        objects: ObjectStore,
        paths: WorkerPaths,
        threads: int,
        kept: Kept,
        disk: Disk | None = None,
        output_bytes: int = 0,
        background: Background | None = None,
        venvs: VenvMaker | None = None,
    ) -> None:
        self.store = PartStore(objects, background=background, again_seconds=DAMAGE_AGAIN_SECONDS)
        self.paths = paths
        self.threads = threads
        """Of a training process that begins from scratch."""
        self.kept = kept
        self.output_bytes = output_bytes
        """Most bytes that a run may keep with a checkpoint; 0: outputs.LIMIT_BYTES."""
        self.disk = disk or Disk(paths.data)
        self.venvs = venvs
        """Makes environments with what jobs require; None: what the worker's own has must do."""
        self.promised: dict[Path, int] = {}
        """Bytes of memory that the snapshots of each attempt may come to take, by their directory."""
        self.sent: dict[str, tuple[int, dict[str, int]]] = {}
        """By the directory of each attempt: the sequence of the snapshot that was persisted last, and its parts that
        are stored."""

    async def prepare(self, held: HeldAssignment, on_condition: OnCondition) -> None:
        """Fetches code and checkpoint and writes the start file; raises Unusable."""
        assignment, directory = held.assignment, Path(held.directory)
        patience = Patience(held, on_condition)
        start = TrainingStart(
            job=assignment.job,
            job_uid=assignment.token.job_uid,
            attempt=assignment.token.attempt,
            spec=assignment.spec,
            notify_socket=str(self.paths.notify_socket),
            threads=self.threads,
            device_uuids=assignment.device_uuids,
            allow_inexact=assignment.allow_inexact,
            output_bytes=self.output_bytes,
            data_directory=str(directory / DATA),
        )
        try:
            here = await self.store.run(claim, self.paths, assignment.restore, directory)
            places = self.snapshot_places(directory, assignment.restore.size_bytes)
            if here is not None and not {place.parent for place in places} & set(here.parents):
                await self.store.run(remove, here)  # the slots come first
                here, places = None, self.snapshot_places(directory, assignment.restore.size_bytes)
            for place in (directory, directory / DATA, *places):
                await self.store.run(place.mkdir, mode=0o700, exist_ok=True)
            start.snapshot_directory = str(places[0])
            start.fallback_snapshot_directory = str(places[1]) if places[1:] else ""
            if assignment.spec.bundle:
                start.code_directory = str(directory / WORK)
                await self.fetch_code(assignment.spec, directory, patience)
            start.site_packages = await self.install(assignment, directory, on_condition)
            if assignment.HasField("restore"):
                restored = await self.restored_somewhere(assignment.restore, directory, places, patience, here)
                start.restore_directory = str(restored)
                await self.store.run(outputs.unpack, restored, directory / OUTPUT)
                start.restore_digests.update(assignment.restore.component_digests)
            await self.store.run(write_start, directory, start)
        except BundleCorrupt as error:
            raise Unusable(reasons.BUNDLE_UNUSABLE, str(error)) from error
        except CheckpointCorrupt as error:
            raise Unusable(reasons.CHECKPOINT_CORRUPT, str(error)) from error
        except OutputsInvalid as error:
            raise Unusable(reasons.CHECKPOINT_CORRUPT, f"{assignment.restore.name}: {error}") from error
        except OSError as error:
            if error.errno in FULL:
                self.disk.refused()
                raise Unusable(reasons.NO_SPACE, f"there is no room for the attempt: {error}") from error
            raise Unusable(reasons.LAUNCH_FAILED, f"cannot prepare the attempt: {error}") from error

    async def install(self, assignment: Assignment, directory: Path, on_condition: OnCondition) -> str:
        """Returns where the packages are that were installed for a job; empty: none were. Raises Unusable, OSError."""
        if not assignment.spec.requirements or self.venvs is None:
            return ""

        def tell(reason: str, message: str) -> None:
            on_condition(
                ConditionChange(condition=Condition(type=Condition.INSTALLING, reason=reason, message=message))
            )

        try:
            found = await self.venvs.provide(assignment, directory, tell)
        except VenvFailed as error:
            if error.reason == reasons.NO_SPACE:
                self.disk.refused()
            raise Unusable(error.reason, str(error)) from error
        on_condition(ConditionChange(condition=Condition(type=Condition.INSTALLING), ended=True))
        return found

    async def make_room(self) -> None:
        """Removes environments that nothing uses."""
        if self.venvs is not None:
            await self.venvs.make_room()

    async def fetch_code(self, spec: JobSpec, directory: Path, patience: "Patience") -> None:
        """Makes the working directory with the code in it; for a drill once more, as training has not changed it."""

        async def fetched(place: str) -> None:
            await fetch_bundle(self.store.watched(patience), spec.bundle, self.paths, self.kept, directory / place)

        for place in (WORK, CODE) if spec.drill_steps else (WORK,):
            await patience.forever(partial(fetched, place), "bundle")

    async def restored_somewhere(
        self, checkpoint: Checkpoint, attempt: Path, places: Sequence[Path], patience: "Patience", here: Path | None
    ) -> Path:
        """Returns a directory with a checkpoint's snapshot, in memory if it has the room; raises as `restore`, OSError.

        `places`: where the snapshots of the attempt go, which come first.
        """
        memory, disk = self.paths.restored(self.paths.snapshots, attempt), attempt / RESTORE
        if here is None and self.fits(checkpoint.size_bytes, places):
            await self.store.run(memory.parent.mkdir, mode=0o700, exist_ok=True)
            try:
                return await self.restore(checkpoint, memory, patience)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                log.warning("restored_to_disk", checkpoint=checkpoint.name, error=str(error))  # others were faster
        return await self.restore(checkpoint, disk, patience, here)

    def fits(self, size: int, places: Sequence[Path]) -> bool:
        """Returns whether memory has room for a checkpoint beside all snapshots that may come to be there."""
        if places[0].parent != self.paths.snapshots:
            return False
        promised = sum(max(0, most - used_bytes(place)) for place, most in self.promised.items())
        return free_bytes(self.paths.snapshots) - promised >= size

    async def restore(self, checkpoint: Checkpoint, into: Path, patience: "Patience", here: Path | None = None) -> Path:
        """Returns a directory with a checkpoint's snapshot: `here` if that is it to the last byte, else `into`.

        Raises CheckpointCorrupt once the checkpoint was found damaged DAMAGE_LOOKS times in a row.
        A bit that the network flips is none that storage has lost, and a server that is starting may not know yet what
        it has. Storage that is away or refuses is waited for, and says nothing of the checkpoint.
        """
        for look in range(1, DAMAGE_LOOKS + 1):
            try:
                if here is not None:
                    if await patience.forever(partial(self.is_here, checkpoint, here, patience), "checkpoint"):
                        return here
                    log.warning("kept_snapshot_differs", checkpoint=checkpoint.name, directory=str(here))
                    await self.store.run(remove, here)
                    here = None
                await patience.forever(lambda: fetch(self.store.watched(patience), checkpoint, into), "checkpoint")
            except CheckpointCorrupt as error:
                log.warning("checkpoint_damaged", checkpoint=checkpoint.name, error=str(error), look=look)
                if look == DAMAGE_LOOKS:
                    raise
                await asyncio.sleep(self.store.again_seconds)
            else:
                return into
        raise AssertionError(DAMAGE_LOOKS)

    async def is_here(self, checkpoint: Checkpoint, directory: Path, patience: "Patience") -> bool:
        return await is_here(self.store.watched(patience), checkpoint, directory)

    async def restored(self, held: HeldAssignment) -> None:
        """Frees the room of what training has restored: it has read all of it."""
        attempt = Path(held.directory)
        for path in (attempt / RESTORE, *(self.paths.restored(place, attempt) for place in self.paths.snapshot_places)):
            await self.store.run(remove, path)

    async def persist(
        self,
        held: HeldAssignment,
        snapshot: Snapshot,
        on_fraction: Callable[[float], None],
        on_condition: OnCondition,
        beside: Callable[[], bool] = never,
    ) -> Checkpoint:
        """Makes a snapshot durable, in the background as long as training goes on `beside` it; raises Unusable."""
        patience = Patience(held, on_condition)
        store = self.store.beside(beside).watched(patience)
        self.promise(Path(held.directory), snapshot.size_bytes)
        base = await self.base(held, patience)
        sequence, sent = self.sent.get(held.directory, (0, {}))
        if sequence != snapshot.sequence:
            sent = {}
        self.sent[held.directory] = snapshot.sequence, sent  # also if this fails: it may be tried again
        try:
            return await patience.forever(
                lambda: persist(store, held.assignment, snapshot, base, sent, on_fraction),
                "persisting",
            )
        except SnapshotDiffers as error:
            raise Unusable(reasons.SNAPSHOT_DIFFERS, str(error)) from error
        except KeyTaken as error:
            message = f"{error}: somebody else acts under this attempt's token; nothing more of it is registered"
            raise Unusable(reasons.FENCED, message) from error
        except (SnapshotLost, SnapshotInvalid) as error:
            raise Unusable(reasons.SNAPSHOT_FAILED, str(error)) from error

    async def clean_up(self, held: HeldAssignment) -> None:
        """Frees disk and memory of an attempt that is over; its log stays, and a snapshot that it may go on from."""
        assignment = held.assignment
        log_file = self.paths.log(assignment.job, assignment.token)
        try:
            await self.store.run(keep, self.paths, held, self.kept.snapshot_bytes)
        except OSError as error:
            log.warning("snapshot_not_kept", directory=held.directory, error=str(error))
        try:
            await self.store.run(self.paths.retire, Path(held.directory), log_file, self.kept)
        except OSError as error:
            log.warning("not_cleaned_up", directory=held.directory, error=str(error))  # the next agent does it
        finally:
            self.promised.pop(self.paths.snapshot_directory(Path(held.directory)), None)
            self.sent.pop(held.directory, None)

    async def drop_orphans(self) -> None:
        """Removes what is kept of jobs of which storage has no manifest any more: they were deleted.

        Raises ObjectStoreUnavailableError, ObjectStoreRefusedError.
        """
        for place in self.paths.snapshot_places:
            for path in await self.store.run(oldest_first, place / KEPT):
                uid = kept_uid(path.name)
                if uid and not await self.store.objects.list(manifest_prefix(uid)):
                    log.info("orphan_dropped", directory=str(path))
                    await self.store.run(remove, path)

    def adopt(self, held: HeldAssignment) -> None:
        """Counts the memory that was promised by an earlier agent to an attempt whose training may go on."""
        if self.paths.snapshot_directory(Path(held.directory)).is_dir():
            self.promise(Path(held.directory), held.assignment.restore.size_bytes)
            self.promise(Path(held.directory), held.persisted.size_bytes)

    def promise(self, attempt: Path, state_bytes: int) -> None:
        """Counts memory for the snapshots of an attempt. A training that began from scratch shows later what it needs.

        Those that have moved to the disk keep what they were promised.
        """
        memory = self.paths.snapshot_directory(attempt)
        self.promised[memory] = max(self.promised.get(memory, 0), SNAPSHOT_SLOTS * state_bytes)

    def snapshot_places(self, attempt: Path, state_bytes: int) -> tuple[Path, ...]:
        """Returns where an attempt's snapshots go, best first; all of them in memory, if it has the room.

        `state_bytes`: size of the state, 0 if it is not known. What other attempts may still come to take counts as
        taken, what was left over by attempts is taken anyhow. Training itself looks again before its first snapshot.
        """
        memory, disk = self.paths.snapshot_directory(attempt), self.paths.disk_snapshot_directory(attempt)
        if memory == disk:
            return (disk,)
        needed = SNAPSHOT_SLOTS * state_bytes
        others = {place: most for place, most in self.promised.items() if place != memory}
        promised = sum(max(0, most - used_bytes(place)) for place, most in others.items())
        make_room(self.paths.snapshots / KEPT, needed + promised)
        free = free_bytes(self.paths.snapshots)
        if needed > free - promised:
            log.warning("snapshots_go_to_disk", attempt=attempt.name, needed=needed, free=free, promised=promised)
            return (disk,)
        self.promise(attempt, state_bytes)
        return memory, disk

    async def base(self, held: HeldAssignment, patience: "Patience") -> Manifest | None:
        """Returns the newest registered checkpoint's manifest: its parts need no upload."""
        newest = held.persisted if held.HasField("persisted") else held.assignment.base
        if not newest.name:
            return None
        try:
            return await patience.forever(lambda: read_manifest(self.store.watched(patience), newest), "manifest")
        except CheckpointCorrupt as error:
            log.warning("base_unusable", error=str(error))  # then every part is uploaded
            return None


class Patience:
    """Tries work of one assignment until storage answers, and tells how storage does, try by try.

    The condition begins once a call has failed for SHOWN_SECONDS or was given up, and ends when the work is done, or
    when no try has failed for CALM_SECONDS. Its message counts the tries, and is told again each time that they double.
    """

    def __init__(self, held: HeldAssignment, on_condition: OnCondition) -> None:
        self._on_condition = on_condition
        self._log = log.bind(job=held.assignment.job, attempt=held.assignment.token.attempt)
        # An earlier agent, or earlier work, may have begun what ends here.
        self._told = next((each for each in held.conditions if each.type == Condition.STORAGE_FAILING), None)
        self._troubled: set[object] = set()
        """Calls that are failing."""
        self._given_up = False
        """The work is to begin again: a call was given up."""
        self._tries = 0
        self._told_tries = 0
        self._newest = 0.0
        """When a try failed last."""
        self._cause = ""

    async def forever(self, work: Callable[[], Awaitable[T]], what: str) -> T:
        """Repeats the work until it is done; raises what is no fault of storage."""
        failures = 0
        while True:
            try:
                done = await work()
            except STORAGE_ERRORS as error:
                self._log.warning("object_store_failing", doing=what, error=error.message, failures=failures)
                self._given_up = True
                self._troubled.clear()
                self._show(error)
            else:
                self._working()
                return done
            limit = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(failures, 10))
            failures += 1
            await asyncio.sleep(random.uniform(0, limit))  # noqa: S311  # jitter

    def failing(self, call: object, error: ObjectStoreUnavailableError, seconds: float) -> None:
        """Hears of a try that failed; see adjourn.objects.Watcher."""
        self._newest = asyncio.get_running_loop().time()
        self._tries += 1
        self._troubled.add(call)
        if self._told or seconds >= SHOWN_SECONDS:
            self._show(error)

    def silent(self, call: object, error: ObjectStoreUnavailableError) -> None:
        """Hears of a try that has had no answer for long."""
        self._newest = asyncio.get_running_loop().time()
        self._troubled.add(call)
        self._show(error)

    def answered(self, call: object) -> None:
        """Hears that storage has answered a call."""
        self._troubled.discard(call)
        calm = asyncio.get_running_loop().time() - self._newest >= CALM_SECONDS
        if calm and not self._troubled and not self._given_up:
            self._working()

    def _show(self, error: ObjectStoreUnavailableError | ObjectStoreRefusedError) -> None:
        refused = isinstance(error, ObjectStoreRefusedError)
        reason = reasons.OBJECT_STORE_REFUSED if refused else reasons.OBJECT_STORE_UNAVAILABLE
        if self._told and self._told.reason == reason:
            # Outages differ in their words from moment to moment. Another refusal is something else to mend.
            if refused and self._cause == error.message:
                return
            if not refused and self._tries < max(1, 2 * self._told_tries):
                return
            if refused:
                self._working()
        self._cause, self._told_tries = error.message, self._tries
        message = error.message if self._tries < 2 else f"{error.message}; {self._tries} tries have failed"
        told = Condition(type=Condition.STORAGE_FAILING, reason=reason, message=message)
        told.time.FromDatetime(datetime.now(UTC))
        self._told = told
        self._on_condition(ConditionChange(condition=told))

    def _working(self) -> None:
        self._troubled.clear()
        self._given_up, self._tries, self._told_tries = False, 0, 0
        if self._told:
            self._told = None
            ended = ConditionChange(condition=Condition(type=Condition.STORAGE_FAILING), ended=True)
            self._on_condition(ended)
