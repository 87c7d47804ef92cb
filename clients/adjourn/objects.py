"""The object store through a few verbs: any S3 server. The only module that imports minio.

minio blocks, so a store has a few threads of its own. Every call ends: connecting, sending, each read and the number of
attempts are bounded. What the server refuses or fails at becomes ObjectStoreUnavailableError, whose text has the
server's error code and never a credential.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final, Protocol, Self, TypeVar
from urllib.parse import urlsplit

from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Retry, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from adjourn.errors import ObjectStoreUnavailableError
from adjourn.settings_reader import SettingsReader

T = TypeVar("T")

THREADS: Final = 8
CONNECT_SECONDS: Final = 2.0
READ_SECONDS: Final = 30.0
"""Longest silence while an answer is awaited or read."""
SEND_SECONDS: Final = 60.0
"""Longest time to send one body."""
READ_ATTEMPTS: Final = 3
RETRIES: Final = Retry(
    total=6,
    connect=5,
    read=2,
    status=5,
    backoff_factor=0.2,
    backoff_max=2.0,
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=None,  # every request of ours may be repeated
    raise_on_status=False,
    respect_retry_after_header=False,  # the server must not decide how long a call lasts
)


class ObjectMissing(LookupError):
    """There is no object of that key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"no object {key}")
        self.key = key


class ObjectTooLong(ValueError):
    """An object is longer than its reader takes."""

    def __init__(self, key: str, limit: int) -> None:
        super().__init__(f"object {key} is longer than {limit} bytes")
        self.key = key
        self.limit = limit


class ObjectStore(Protocol):
    """Objects of one bucket. Every verb may be repeated; all raise ObjectStoreUnavailableError."""

    @property
    def bucket(self) -> str: ...

    async def ensure_bucket(self) -> None:
        """Makes the bucket if it is not there."""

    async def put(self, key: str, data: bytes) -> None:
        """Stores an object, whole or not at all."""

    async def get(self, key: str, *, limit: int) -> bytes:
        """Returns an object of at most `limit` bytes; raises ObjectMissing, ObjectTooLong."""

    async def size(self, key: str) -> int | None:
        """Returns the size of an object in bytes; None if it is not there."""

    async def list(self, prefix: str) -> Mapping[str, int]:
        """Returns the sizes of all objects below a prefix, by key."""

    async def delete_prefix(self, prefix: str) -> int:
        """Deletes all objects below a prefix and returns how many there were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """Where objects are kept, and the key to it."""

    endpoint: str
    """`http://host:port` or `https://host`."""
    bucket: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    region: str = "us-east-1"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Reads ADJOURN_S3_*; raises InvalidSettings naming everything that is wrong."""
        reader = SettingsReader(environment)
        settings = cls(
            endpoint=reader.take("ADJOURN_S3_ENDPOINT", endpoint),
            bucket=reader.take("ADJOURN_S3_BUCKET", bucket_name),
            access_key=reader.take("ADJOURN_S3_ACCESS_KEY", str),
            secret_key=reader.take("ADJOURN_S3_SECRET_KEY", str),
            region=reader.take("ADJOURN_S3_REGION", str, "us-east-1"),
        )
        reader.check()
        return settings


def endpoint(text: str) -> str:
    parts = urlsplit(text)
    try:
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.scheme not in ("http", "https") or parts.path not in ("", "/") or parts.query:
        raise ValueError("must be http://host:port or https://host:port")
    if parts.username is not None:
        raise ValueError("must not contain credentials")
    return f"{parts.scheme}://{parts.netloc}"


def bucket_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", text):
        raise ValueError("must be 3 to 63 of a-z, 0-9, . and -")
    return text


class S3Objects:
    """Objects on an S3 server. `async with` it, or `close` it."""

    def __init__(self, settings: S3Settings) -> None:
        self._bucket = settings.bucket
        self._place = f"bucket {settings.bucket} at {settings.endpoint}"
        self._region = settings.region
        self._pool = http_pool()
        self._client = Minio(
            urlsplit(settings.endpoint).netloc,
            access_key=settings.access_key,
            secret_key=settings.secret_key,
            secure=settings.endpoint.startswith("https:"),
            region=settings.region,
            http_client=self._pool,
        )
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="objects")

    @property
    def bucket(self) -> str:
        return self._bucket

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of threads and connections; a call under way ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.clear()

    async def ensure_bucket(self) -> None:
        await self._call(self._make_bucket)

    async def put(self, key: str, data: bytes) -> None:
        await self._call(
            # One request whatever the size: completing a multipart upload is not atomic on every server.
            lambda: self._client.put_object(
                self._bucket, key, BytesIO(data), len(data), part_size=max(len(data), 5 << 20)
            )
        )

    async def get(self, key: str, *, limit: int) -> bytes:
        return await self._call(lambda: self._read(key, limit))

    async def size(self, key: str) -> int | None:
        try:
            return await self._call(lambda: self._client.stat_object(self._bucket, key).size)
        except ObjectMissing:
            return None

    async def list(self, prefix: str) -> Mapping[str, int]:
        return await self._call(lambda: self._list(prefix))

    async def delete_prefix(self, prefix: str) -> int:
        return await self._call(lambda: self._delete(prefix))

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: self._guarded(work))

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except S3Error as error:
            if error.code == "NoSuchKey":
                raise ObjectMissing(error.object_name or "") from error
            raise self._unavailable(f"{error.code}: {error.message}") from error
        except (MinioException, HTTPError, OSError) as error:
            raise self._unavailable(f"{type(error).__name__}: {error}") from error

    def _unavailable(self, why: str) -> ObjectStoreUnavailableError:
        return ObjectStoreUnavailableError(f"{self._place} cannot be used: {why}", bucket=self._bucket)

    def _make_bucket(self) -> None:
        if self._client.bucket_exists(self._bucket):
            return
        try:
            self._client.make_bucket(self._bucket, self._region)
        except S3Error as error:
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):  # someone was faster
                raise

    def _read(self, key: str, limit: int) -> bytes:
        for attempt in range(1, READ_ATTEMPTS + 1):
            response = self._client.get_object(self._bucket, key)
            try:
                data = response.read(limit + 1)
            except HTTPError:  # the connection broke within the body, which urllib3 does not repeat
                if attempt == READ_ATTEMPTS:
                    raise
                continue
            finally:
                response.close()
                response.release_conn()
            if len(data) > limit:
                raise ObjectTooLong(key, limit)
            return data
        raise AssertionError(key)

    def _list(self, prefix: str) -> dict[str, int]:
        found = self._client.list_objects(self._bucket, prefix, recursive=True)
        return {item.object_name or "": item.size or 0 for item in found if not item.is_dir}

    def _delete(self, prefix: str) -> int:
        keys = list(self._list(prefix))
        for error in self._client.remove_objects(self._bucket, map(DeleteObject, keys)):
            raise self._unavailable(f"{error.code}: {error.name}")
        return len(keys)


class _Sending:
    """urllib3 lets the connect timeout bound the sending of a whole body: 8 MiB in 2 s is too much for many a link."""

    def send(self, data: Any) -> None:
        connection: Any = self
        if connection.sock is None:
            connection.connect()
        connection.sock.settimeout(SEND_SECONDS)
        super().send(data)  # type: ignore[misc]


class _Connection(_Sending, HTTPConnection):
    pass


class _SecureConnection(_Sending, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def http_pool() -> PoolManager:
    pool = PoolManager(maxsize=THREADS, timeout=Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS), retries=RETRIES)
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return pool
