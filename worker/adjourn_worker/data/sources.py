"""Where data comes from: objects and folders of S3, files over HTTP. What is there, and its bytes from an offset on."""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager, Retry, Timeout
from urllib3.exceptions import HTTPError
from urllib3.util import make_headers, parse_url

from adjourn import reasons
from adjourn.errors import ObjectStoreRefusedError, ObjectStoreUnavailableError
from adjourn.objects import Described, ObjectChanged, ObjectMissing, S3Objects
from adjourn_worker.data.places import DataFailed, Place, refused

T = TypeVar("T")

RANGE_BYTES: Final = 8 << 20
"""Of an object that are asked for at a time."""
RANGES_AHEAD: Final = 4
"""Ranges of one object that are on their way together; of a folder its objects are, a range of each."""
PIECE_BYTES: Final = 1 << 20
"""Of an answer over HTTP that are read at a time."""
CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 30.0
THREADS: Final = 4
REDIRECTS: Final = Retry(total=None, connect=0, read=0, status=0, other=0, redirect=5, raise_on_status=False)
HEALING_STATUSES: Final = frozenset({408, 425, 429})


class SourceUnavailable(Exception):
    """A source is away, fails, or changes while it is read: try again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file of the data."""

    path: str
    """Below the folder; of a single file its name."""
    size: int | None
    """In bytes; None: the source does not tell."""
    tag: str = ""
    """Changes with its content; empty: the source does not tell."""
    md5: str = ""
    """Of its content, hex; empty: the source does not tell."""
    described: Described | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What there is at a place."""

    items: Sequence[Item]
    """In the order of their paths."""
    tag: str
    """Changes with any content; empty: the source does not tell."""
    version: str = ""

    @property
    def size(self) -> int | None:
        sizes = [item.size for item in self.items]
        return None if None in sizes else sum(size or 0 for size in sizes)


class Source(Protocol):
    """What a place of data offers. All raise SourceUnavailable and DataFailed."""

    async def listing(self, version: str = "") -> Listing:
        """Returns what there is now, or was in a version, if that is kept; raises DataFailed if there is nothing."""

    def read(self, item: Item, offset: int) -> AsyncGenerator[bytes]:
        """Yields the bytes of an item from an offset on."""


class S3Source:
    """An object, or all that there is below a prefix."""

    def __init__(self, objects: S3Objects, place: Place) -> None:
        self._objects = objects.of_bucket(place.bucket)
        self._place = place

    async def listing(self, version: str = "") -> Listing:
        with self._explained():
            if not self._place.is_folder:
                found = await self._objects.describe(self._place.key, version)
                return Listing(items=[item_of(found, self._place.name)], tag=found.etag, version=found.version)
            inside = await self._objects.described(self._place.key)
        found_items = (
            item_of(each, each.key.removeprefix(self._place.key)) for each in inside if not each.key.endswith("/")
        )
        items = sorted(found_items, key=lambda item: item.path)
        if not items:
            raise DataFailed(reasons.DATA_MISSING, f"{self._place.uri}: there is no object below it")
        check_paths(self._place, [item.path for item in items])
        lines = "".join(f"{item.tag} {item.size} {item.path}\n" for item in items)
        return Listing(items=items, tag=hashlib.sha256(lines.encode()).hexdigest())

    async def read(self, item: Item, offset: int) -> AsyncGenerator[bytes]:
        assert item.described
        offsets = iter(range(offset, item.described.size, RANGE_BYTES))
        ahead: deque[asyncio.Task[bytes]] = deque()
        try:
            while True:
                for begin in offsets:
                    ahead.append(asyncio.create_task(self._objects.read(item.described, begin, RANGE_BYTES)))
                    if len(ahead) == (1 if self._place.is_folder else RANGES_AHEAD):
                        break
                if not ahead:
                    return
                with self._explained():
                    data = await ahead[0]
                ahead.popleft()
                yield data
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        uri = self._place.uri
        try:
            yield
        except ObjectMissing as error:
            message = f"{uri}: there is no such object; the URI of a folder ends with /"
            raise DataFailed(reasons.DATA_MISSING, message) from error
        except ObjectChanged as error:
            raise SourceUnavailable(f"{error} was written while it was read") from error
        except ObjectStoreUnavailableError as error:
            raise SourceUnavailable(error.message) from error
        except ObjectStoreRefusedError as error:
            code = error.metadata.get("s3_code", "")
            if code == "NoSuchBucket":
                raise DataFailed(reasons.DATA_MISSING, f"{uri}: there is no bucket {self._place.bucket}") from error
            raise refused(uri, f"S3 refuses with {code}; the worker's key for data may not read it") from error


def item_of(found: Described, path: str) -> Item:
    return Item(path=path, size=found.size, tag=found.etag, md5=found.md5, described=found)


def check_paths(place: Place, paths: Sequence[str]) -> None:
    """Raises DataFailed if the keys of a folder cannot be files below a directory."""
    files = set(paths)
    for path in paths:
        parts = PurePosixPath(path).parts
        if path != "/".join(parts) or ".." in parts or "\0" in path or path.startswith("/"):
            raise refused(place.uri, f"the key {path!r} below it can be no file in a folder")
        if not files.isdisjoint(map(str, PurePosixPath(path).parents)):
            raise refused(place.uri, f"the key {path!r} below it lies in what is an object itself")


class WebSource:
    """A file over HTTP. Its parts may be asked for, if the server tells a change of it by ETag or Last-Modified."""

    def __init__(self, threads: ThreadPoolExecutor, place: Place) -> None:
        self._threads = threads
        self._place = place

    async def listing(self, version: str = "") -> Listing:
        # Not HEAD: an address that was signed for GET alone, or a server that knows no HEAD, refuses that.
        response = await self._run(lambda: self._get({}))
        await self._run(response.close)
        length = response.headers.get("Content-Length", "")
        tag = tag_of(response)
        item = Item(path=self._place.name, size=int(length) if length.isdecimal() else None, tag=tag)
        return Listing(items=[item], tag=f"{tag} {length}" if tag else "")

    async def read(self, item: Item, offset: int) -> AsyncGenerator[bytes]:
        headers = {"Range": f"bytes={offset}-", "If-Range": item.tag} if offset else {}
        response = await self._run(lambda: self._get(headers))
        try:
            if tag_of(response) != item.tag or response.status != (206 if offset else 200):
                raise SourceUnavailable(f"{self._place.shown} has changed while it was read")
            while data := await self._run(lambda: response.read(PIECE_BYTES)):
                yield bytes(data)
        finally:
            response.close()

    def _get(self, headers: dict[str, str]) -> BaseHTTPResponse:
        response = pool_for(self._place.uri).request(
            "GET",
            self._place.uri,
            headers={"Accept-Encoding": "identity", **headers},
            preload_content=False,
            decode_content=False,
            retries=REDIRECTS,
        )
        status = response.status
        if status in (200, 206):
            return response
        response.close()
        if status in (404, 410):
            raise DataFailed(reasons.DATA_MISSING, f"{self._place.shown}: the server has no such file ({status})")
        if status < 500 and status not in HEALING_STATUSES:
            raise refused(self._place.shown, f"the server refuses with status {status}")
        raise SourceUnavailable(f"{self._place.shown}: the server answers with status {status}")

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except (HTTPError, OSError) as error:  # its text may quote the address, signature and all
            raise SourceUnavailable(f"{self._place.shown} cannot be read: {type(error).__name__}") from error


def tag_of(response: BaseHTTPResponse) -> str:
    """Returns what tells a change of a file, as a condition takes it; empty: the server does not tell."""
    etag = response.headers.get("ETag", "")
    return response.headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag


def pool_for(uri: str) -> PoolManager:
    """Returns connections, by the proxy that the environment names if there is one."""
    parts = urlsplit(uri)
    options: dict[str, Any] = {"timeout": Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS), "num_pools": 1}
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.hostname or ""):
        return PoolManager(**options)
    user = parse_url(proxy).auth
    return ProxyManager(proxy, proxy_headers=make_headers(proxy_basic_auth=user) if user else None, **options)
