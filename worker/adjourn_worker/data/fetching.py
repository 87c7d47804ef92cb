"""Brings data to this worker, once however many attempts ask, and answers them.

A source that is away is asked again, for as long as it takes. What has arrived stays when the agent dies, and the next
one goes on behind it. Data counts as here once all of it has the size, and the MD5 where the source tells one, that the
source says. The SHA-256 of what arrived is its identity: a run that goes on gets these bytes again, or none.
"""

import asyncio
import errno
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import structlog
from google.protobuf.message import DecodeError

from adjourn import data_identities, reasons
from adjourn.internal.v1.trainer_pb2 import DataAnswer, DataIdentity, DataRequest
from adjourn.objects import S3Objects
from adjourn.v1.job_pb2 import Failure
from adjourn_worker.attempt import files
from adjourn_worker.data.cache import CONTENT, DONE, DataCache, Entry, NoRoom, read_done
from adjourn_worker.data.course import Course
from adjourn_worker.data.places import Access, DataFailed, Place, place_of, refused
from adjourn_worker.data.sources import THREADS, Item, Listing, S3Source, Source, SourceUnavailable, WebSource
from adjourn_worker.host.disk import FULL
from adjourn_worker.launcher import process_tree

log: structlog.stdlib.BoundLogger = structlog.get_logger()
P = ParamSpec("P")
T = TypeVar("T")

FILES_AT_A_TIME: Final = 4
BACKOFF_FIRST: Final = 0.5
BACKOFF_MOST: Final = 10.0
DAMAGE_LOOKS: Final = 3
"""Times that a file has to arrive damaged to count as that."""
ANSWER_AGAIN_SECONDS: Final = 1.0
READ_BYTES: Final = 8 << 20


class Damaged(Exception):
    """A file has not arrived as the source says that it is."""


Watcher = Callable[[Course], None]


@dataclass(eq=False)
class Fetch:
    """Data that is being brought, for all who wait for it."""

    place: Place
    course: Course
    watchers: list[Watcher] = field(default_factory=list)

    def tell(self, **changes: Any) -> None:
        """Tells those who wait of fields of `course` that have changed."""
        self.course = replace(self.course, **changes)
        for watcher in self.watchers:
            watcher(self.course)


class DataTasks:
    """Fetches data for all attempts of a worker. Lives as long as the agent."""

    def __init__(self, cache: DataCache, access: Access, objects: S3Objects | None) -> None:
        """`objects`: of the server that data is read from; None: there is no S3."""
        self.cache = cache
        self._access = access
        self._objects = objects
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="data-cache")
        """The cache is one thread's."""
        self._threads = ThreadPoolExecutor(2 * THREADS, thread_name_prefix="data")
        self._fetches: dict[tuple[str, str], tuple[Fetch, asyncio.Task[Entry]]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        """By name of what is on its way: those who want it for different reasons take turns."""

    async def open(self) -> None:
        await self._cached(self.cache.open)

    async def make_room(self, free: int = 0) -> None:
        """Removes what nothing uses, as far as the limit says, and until so many bytes are free."""
        try:
            await self._cached(self.cache.make_room, 0, free)
        except OSError as error:  # the disk is not well: no reason to give the worker up
            log.warning("data_not_removed", error=str(error))

    async def answer(self, request: Path, watcher: Watcher) -> None:
        """Answers a request of training, once its data is here or cannot be had."""
        asked = await self._in_thread(read_request, request)
        if asked is None:
            return
        expected = asked.expected if asked.HasField("expected") else None
        try:
            place = place_of(asked.uri)
            self._access.check(place)
        except DataFailed as error:
            await self._write_answer(request, failure(error))
            return
        key = (asked.uri, expected.digest if expected else "")
        if key not in self._fetches:
            self._begin(key, place, expected)
        fetch, task = self._fetches[key]
        fetch.watchers.append(watcher)
        try:
            watcher(fetch.course)
            try:
                entry = await asyncio.shield(task)
            except DataFailed as error:
                log.warning("data_not_fetched", uri=place.shown, reason=error.reason, error=str(error))
                await self._write_answer(request, failure(error))
            except Exception as error:  # a fault of ours: training must not wait for ever
                log.exception("data_not_fetched", uri=place.shown)
                message = f"{place.shown}: {type(error).__name__}: {error}"
                await self._write_answer(request, failure(DataFailed(reasons.LAUNCH_FAILED, message)))
            else:
                path = str(self.cache.path(entry))
                await self._write_answer(request, DataAnswer(path=path, identity=entry.identity(asked.uri)))
        finally:
            fetch.watchers.remove(watcher)
            if not fetch.watchers:  # it is held no more, and what another asks for is looked for anew
                if self._fetches.get(key) == (fetch, task):
                    del self._fetches[key]
                task.cancel()
                task.add_done_callback(lambda _: self.cache.release(fetch))

    def _begin(self, key: tuple[str, str], place: Place, expected: DataIdentity | None) -> None:
        fetch = Fetch(place=place, course=Course(shown=place.shown))
        task = asyncio.create_task(self._bring(fetch, expected))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # told to those who wait
        self._fetches[key] = fetch, task

    async def _write_answer(self, request: Path, answer: DataAnswer) -> None:
        """Writes an answer as soon as the disk has room for it."""
        path = request.with_suffix(files.ANSWER)
        while True:
            try:
                await self._in_thread(files.write, path, answer.SerializeToString())
            except FileNotFoundError:
                return  # the attempt is gone
            except OSError as error:
                log.warning("data_not_answered", path=str(path), error=str(error))
            else:
                return
            await asyncio.sleep(ANSWER_AGAIN_SECONDS)

    async def _bring(self, fetch: Fetch, expected: DataIdentity | None) -> Entry:
        """Returns the data once it is here; raises DataFailed."""
        place = fetch.place
        if expected is not None:
            here = self.cache.of_digest(expected.digest, place.name)
            if here is not None and await self._cached(self.cache.use, here, fetch):
                return here
        source = self._source(place)
        failures = damaged = 0
        while True:
            try:
                return await self._brought(fetch, source, expected)
            except SourceUnavailable as error:
                log.warning("data_unavailable", uri=place.shown, error=str(error), failures=failures)
                fetch.tell(unavailable=str(error))
            except Damaged as error:
                damaged += 1
                log.warning("data_damaged", uri=place.shown, error=str(error), look=damaged)
                if damaged == DAMAGE_LOOKS:
                    raise DataFailed(reasons.DATA_DAMAGED, f"{place.shown}: {error}") from error
            except NoRoom as error:
                message = f"{place.shown}: the worker's disk has no room for it: {error}"
                raise DataFailed(reasons.DATA_NO_ROOM, message) from error
            except OSError as error:
                reason = reasons.DATA_NO_ROOM if error.errno in FULL else reasons.LAUNCH_FAILED
                raise DataFailed(reason, f"{place.shown} cannot be stored on the worker: {error.strerror}") from error
            limit = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(failures, 10))
            failures += 1
            await asyncio.sleep(random.uniform(0, limit))  # noqa: S311  # jitter

    def _source(self, place: Place) -> Source:
        if not place.bucket:
            return WebSource(self._threads, place)
        if self._objects is None:
            raise refused(place.uri, "this worker has no S3 that data is read from")
        return S3Source(self._objects, place)

    async def _brought(self, fetch: Fetch, source: Source, expected: DataIdentity | None) -> Entry:
        place = fetch.place
        listing = await self._listing(place, source, expected)
        here = self.cache.of_source(place.uri, listing.tag)
        if here is not None and await self._cached(self.cache.use, here, fetch):
            self._compare(place, here.identity(place.uri), expected)
            return here
        key = hashlib.sha256(f"{place.uri} {listing.tag}".encode(errors="replace")).hexdigest()[:32]
        async with self._locks.setdefault(key, asyncio.Lock()):
            entry = await self._download(fetch, source, listing, key)
        entry = await self._cached(self.cache.add_source, entry, place.uri, listing.tag, listing.version)
        self._compare(place, entry.identity(place.uri), expected)
        return entry

    async def _listing(self, place: Place, source: Source, expected: DataIdentity | None) -> Listing:
        """Returns what there is: the version that is expected, if it is kept. Raises DataFailed if that is not it."""
        if expected is not None and expected.version:
            try:
                return await source.listing(expected.version)
            except DataFailed as error:
                log.warning("data_version_gone", uri=place.shown, version=expected.version, error=str(error))
        listing = await source.listing()
        if expected is not None and listing.size not in (None, expected.size_bytes):
            found = DataIdentity(size_bytes=listing.size or 0, files=len(listing.items), version=listing.version)
            raise changed(place, found, expected)
        return listing

    def _compare(self, place: Place, found: DataIdentity, expected: DataIdentity | None) -> None:
        if expected is not None and found.digest != expected.digest:
            raise changed(place, found, expected)

    async def _download(self, fetch: Fetch, source: Source, listing: Listing, key: str) -> Entry:
        here = self.cache.of_source(fetch.place.uri, listing.tag)
        if here is not None and await self._cached(self.cache.use, here, fetch):
            return here  # somebody else brought it meanwhile
        partial = await self._cached(self.cache.partial, key, process_tree.boot_id(), fetch)
        done = await self._in_thread(read_done, partial)
        total = listing.size
        if total is not None:
            arrived = await self._in_thread(arrived_bytes, partial / CONTENT, listing.items)
            await self._cached(self.cache.make_room, max(0, total - arrived))
        fetch.tell(done=0, total=total)
        digests: dict[str, str] = {}
        sizes: dict[str, int] = {}
        turns = asyncio.Semaphore(FILES_AT_A_TIME)

        async def bring(item: Item) -> None:
            async with turns:
                arriving = await self._arrive(fetch, source, item, partial, done.get(item.path))
                digests[item.path], sizes[item.path] = arriving.sha256.hexdigest(), arriving.size

        try:
            async with asyncio.TaskGroup() as group:
                for item in listing.items:
                    group.create_task(bring(item))
        except BaseExceptionGroup as errors:
            raise first_of(errors) from None
        if fetch.place.is_folder:
            lines = "".join(f"{digests[item.path]} {sizes[item.path]} {item.path}\n" for item in listing.items)
            digest = hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
        else:
            (digest,) = digests.values()
        return await self._cached(
            self.cache.publish,
            partial,
            fetch.place.name,
            digest,
            list(sizes.values()),
            fetch,
            folder=fetch.place.is_folder,
        )

    async def _arrive(self, fetch: Fetch, source: Source, item: Item, partial: Path, whole: str | None) -> "Arriving":
        """Returns a file that has arrived, as a whole; `whole`: its SHA-256, if it had before. Raises Damaged."""
        arriving = Arriving(partial / CONTENT / item.path, item)
        try:
            await self._in_thread(arriving.open)
            fetch.tell(done=fetch.course.done + arriving.size)
            if whole is None or arriving.sha256.hexdigest() != whole:
                if whole is not None:
                    fetch.tell(done=fetch.course.done - arriving.size)
                    await self._in_thread(arriving.empty)
                if item.size is None or arriving.size < item.size or not arriving.size:
                    async with aclosing(source.read(item, arriving.size)) as pieces:
                        async for data in pieces:
                            await self._in_thread(arriving.write, data)
                            fetch.tell(done=fetch.course.done + len(data), unavailable="")
                await self._in_thread(arriving.check)
                line = json.dumps({item.path: arriving.sha256.hexdigest()})
                await self._cached(append, partial / DONE, line)
        finally:
            await self._in_thread(arriving.close)
        return arriving

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await to_the_end(self._threads, lambda: work(*args, **kwargs))

    async def _cached(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await to_the_end(self._disk, lambda: work(*args, **kwargs))


class Arriving:
    """A file that arrives; what came before the agent died is read again. All of it blocks."""

    def __init__(self, path: Path, item: Item) -> None:
        self.sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._path = path
        self._item = item
        self._file: Any = None
        self.size = 0

    def open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = self._path.open("a+b", buffering=0)
        if not self._item.tag or self._item.size is None:  # whether it is the same still, or all, is not known
            self._file.truncate(0)
        self._file.seek(0)
        while data := self._file.read(READ_BYTES):
            self._take(data)

    def empty(self) -> None:
        self._file.truncate(0)
        self.size = 0
        self.sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        self._take(data)

    def check(self) -> None:
        """Raises Damaged, and begins anew, if the file is not what the source says."""
        item, told = self._item, self._md5.hexdigest()
        if item.size not in (None, self.size):
            self.empty()
            raise Damaged(f"{item.path} has {self.size:,} bytes, and should have {item.size:,}")
        if item.md5 and item.md5 != told:
            self.empty()
            raise Damaged(f"{item.path} has the MD5 {told}, and should have {item.md5}")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _take(self, data: bytes) -> None:
        self.size += len(data)
        self.sha256.update(data)
        self._md5.update(data)


async def to_the_end(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """Works in a thread; who is cancelled meanwhile waits for its end, for then others go on with what it works on."""
    working = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Returns the error that decides: what would not pass comes before what may."""
    found: list[BaseException] = [each for each in errors.exceptions if not isinstance(each, SourceUnavailable)]
    return (found or list(errors.exceptions))[0]


def read_request(path: Path) -> DataRequest | None:
    """Returns None if it was taken back, or is none: training code can write there too."""
    try:
        return DataRequest.FromString(path.read_bytes())
    except FileNotFoundError:
        return None
    except DecodeError as error:
        log.warning("data_request_damaged", path=str(path), error=str(error))
        return None


def arrived_bytes(content: Path, items: Sequence[Item]) -> int:
    total = 0
    for item in items:
        try:
            total += (content / item.path).stat().st_size
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
    return total


def append(path: Path, line: str) -> None:
    with path.open("a", errors="surrogateescape") as file:
        file.write(f"{line}\n")


def failure(error: DataFailed) -> DataAnswer:
    return DataAnswer(failure=Failure(reason=error.reason, message=str(error)))


def changed(place: Place, found: DataIdentity, expected: DataIdentity) -> DataFailed:
    return DataFailed(reasons.DATA_CHANGED, data_identities.changed(place.shown, expected, found))
