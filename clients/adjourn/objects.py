"""The object store through a few verbs: any S3 server. The only module that imports minio.

minio blocks, so a store has a few threads of its own. Every call ends: connecting, sending, each read and the number of
tries are bounded. Only we try again (minio and urllib3 do not), with jitter, and whoever watches is told of each try.
A server that is away or fails raises ObjectStoreUnavailableError, one that refuses raises ObjectStoreRefusedError.
Their texts have the server's error code and never a credential.

What is known of servers: AWS, MinIO and SeaweedFS 4.48 compare what they receive with the SHA-256 that is sent along,
refuse with BadDigest if it differs, and return that SHA-256. A server that does not return it has not compared.
If-None-Match is obeyed by AWS (since 2024), MinIO and SeaweedFS (since 3.97); older servers ignore it. An ETag is
computed when an object is written: it tells whether somebody wrote again, not whether a disk has lost a bit since.
"""

import asyncio
import copy
import hashlib
import random
import re
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, Self, TypeVar
from urllib.parse import urlsplit

from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error
from minio.time import from_http_header
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Retry, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from adjourn.errors import ObjectStoreRefusedError, ObjectStoreUnavailableError
from adjourn.settings_reader import SettingsReader

T = TypeVar("T")

THREADS: Final = 8
CONNECT_SECONDS: Final = 2.0
READ_SECONDS: Final = 30.0
"""Longest silence while an answer is awaited or read."""
SEND_SECONDS: Final = 60.0
"""Longest time to send one body."""
TRIES: Final = 5
"""Of one call. Whoever has longer patience calls again."""
BACKOFF_FIRST: Final = 0.2
BACKOFF_MOST: Final = 2.0
"""Seconds before a try, at most, twice as long each time; at random below that, or many would come back as one."""
DELETION_SECONDS: Final = 60
"""How long a deletion that was prepared may be carried out."""
SILENT_SECONDS: Final = 10.0
"""After so long without an answer a watcher is told, although the try goes on."""
NO_RETRIES: Final = Retry(
    total=None,
    connect=0,
    read=0,
    status=0,
    other=0,
    redirect=3,
    raise_on_status=False,
    respect_retry_after_header=False,
)


HEALING_CODES: Final = frozenset(
    {
        *("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "RequestTimeout"),
        *("ConditionalRequestConflict", "OperationAborted", "SlowDown", "TooManyRequests"),
    }
)
"""S3 codes that come with a status of 4xx although the same request may succeed later."""
ADVICE: Final = {
    "InvalidAccessKeyId": "correct ADJOURN_S3_ACCESS_KEY",
    "SignatureDoesNotMatch": "correct ADJOURN_S3_SECRET_KEY",
    "NoSuchBucket": "create the bucket, or correct ADJOURN_S3_BUCKET",
    "RequestTimeTooSkewed": "set the clock of this machine",
    "AccessDenied": "check ADJOURN_S3_ACCESS_KEY and ADJOURN_S3_SECRET_KEY, and what the key may do",
}
STORAGE_ERRORS: Final = (ObjectStoreUnavailableError, ObjectStoreRefusedError)
"""What every call may raise: storage is away, or it refuses."""


CHECKSUM_HEADER: Final = "x-amz-checksum-sha256"


class ObjectMissing(LookupError):
    """There is no object of that key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"no object {key}")
        self.key = key


class ObjectChanged(Exception):
    """An object is not any more the one that was described."""


class ObjectTooLong(ValueError):
    """An object is longer than its reader takes."""

    def __init__(self, key: str, limit: int) -> None:
        super().__init__(f"object {key} is longer than {limit} bytes")
        self.key = key
        self.limit = limit


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectVersion:
    """What a store says of an object without sending it. It changes when somebody writes other content."""

    size: int
    """In bytes."""
    etag: str
    modified: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a store says of an object that somebody may want to read."""

    key: str
    size: int
    """In bytes."""
    etag: str
    version: str = ""
    """Of a bucket that keeps versions."""
    md5: str = ""
    """Of the content, hex; empty: the store does not tell (an upload in parts, a key of the server's)."""


class Watcher(Protocol):
    """Hears how the calls of a store go, try by try. `call` is the same for the tries of one call, and for no other."""

    def failing(self, call: object, error: ObjectStoreUnavailableError, seconds: float) -> None:
        """A try failed; `seconds`: since the call began."""

    def silent(self, call: object, error: ObjectStoreUnavailableError) -> None:
        """A try goes on, and has had no answer for SILENT_SECONDS."""

    def answered(self, call: object) -> None:
        """The store has answered a call."""


Deletion = Callable[[], Awaitable[None]]


class ObjectStore(Protocol):
    """Objects of one bucket. Every verb may be repeated, but for what `deletion` returns.

    All raise ObjectStoreUnavailableError and ObjectStoreRefusedError.
    """

    def watched(self, watcher: Watcher) -> "ObjectStore":
        """Returns this store with somebody who hears how the calls go that are made through what is returned."""

    @property
    def bucket(self) -> str: ...

    async def ensure_bucket(self) -> None:
        """Makes the bucket if it is not there."""

    async def put(self, key: str, data: bytes) -> bool:
        """Stores an object, whole or not at all, in place of one that is there.

        Returns whether the store has compared the SHA-256 of what it received with that of `data`.
        """

    async def create(self, key: str, data: bytes) -> bool:
        """Stores an object unless there is one of that key; returns whether it did.

        A store that does not know conditions replaces what is there: whoever minds looks before and after.
        """

    async def get(self, key: str, *, limit: int) -> bytes:
        """Returns an object of at most `limit` bytes; raises ObjectMissing, ObjectTooLong."""

    async def get_with_version(self, key: str, *, limit: int) -> tuple[bytes, ObjectVersion | None]:
        """Does as `get`; returns also the version that was read, None if the server does not tell it."""

    async def stat(self, key: str) -> ObjectVersion | None:
        """Returns the version of an object; None if it is not there."""

    async def list(self, prefix: str) -> Mapping[str, int]:
        """Returns the sizes of all objects below a prefix, by key."""

    async def written(self, prefix: str) -> Mapping[str, datetime]:
        """Returns when each object below a prefix was written, by key."""

    async def delete(self, keys: Collection[str]) -> None:
        """Deletes objects; those that are not there are gone already."""

    async def delete_prefix(self, prefix: str) -> int:
        """Deletes all objects below a prefix and returns how many there were."""

    def deletion(self, key: str) -> "Deletion":
        """Returns what deletes an object, once and without a repeat.

        The server refuses it when DELETION_SECONDS have passed since this call, by its own clock. A server also refuses
        all requests of somebody whose clock differs from its own by more than 15 minutes.
        """


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

    def __init__(self, settings: S3Settings, *, begin_thread: Callable[[], None] | None = None) -> None:
        """`begin_thread` is called by each thread that sends and receives, when it begins."""
        self._bucket = settings.bucket
        self._place = f"bucket {settings.bucket} at {settings.endpoint}"
        self._region = settings.region
        self._pool = http_pool()
        self._client = _Client(
            urlsplit(settings.endpoint).netloc,
            access_key=settings.access_key,
            secret_key=settings.secret_key,
            secure=settings.endpoint.startswith("https:"),
            region=settings.region,
            http_client=self._pool,
        )
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="objects", initializer=begin_thread)
        self._watcher: Watcher | None = None

    def watched(self, watcher: Watcher) -> "S3Objects":
        view = copy.copy(self)
        view._watcher = watcher  # noqa: SLF001
        return view

    @property
    def bucket(self) -> str:
        return self._bucket

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def of_bucket(self, bucket: str) -> "S3Objects":
        """Returns the objects of another bucket of the server; to be closed with this one."""
        view = copy.copy(self)
        view._bucket, view._place = bucket, self._place.replace(f"bucket {self._bucket} ", f"bucket {bucket} ", 1)  # noqa: SLF001
        return view

    async def describe(self, key: str, version: str = "") -> Described:
        """Returns what there is of a key, or of an earlier version of it; raises ObjectMissing."""
        return await self._call(lambda: self._describe(key, version))

    async def described(self, prefix: str) -> Sequence[Described]:
        """Returns all objects below a prefix."""
        return await self._call(lambda: self._described(prefix))

    async def read(self, found: Described, offset: int, length: int) -> bytes:
        """Returns bytes of an object that was described, fewer at its end; raises ObjectMissing, ObjectChanged."""
        return await self._call(lambda: self._read_part(found, offset, length))

    def close(self) -> None:
        """Lets go of threads and connections; a call under way ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.clear()

    async def ensure_bucket(self) -> None:
        await self._call(self._make_bucket)

    async def put(self, key: str, data: bytes) -> bool:
        return await self._call(lambda: self._put(key, data, {}))

    async def create(self, key: str, data: bytes) -> bool:
        try:
            await self._call(lambda: self._put(key, data, {"If-None-Match": "*"}))
        except _Exists:
            return False
        return True

    async def get(self, key: str, *, limit: int) -> bytes:
        data, _ = await self.get_with_version(key, limit=limit)
        return data

    async def get_with_version(self, key: str, *, limit: int) -> tuple[bytes, ObjectVersion | None]:
        return await self._call(lambda: self._read(key, limit))

    async def stat(self, key: str) -> ObjectVersion | None:
        return await self._call(lambda: self._stat(key))

    async def list(self, prefix: str) -> Mapping[str, int]:
        return await self._call(lambda: self._list(prefix))

    async def written(self, prefix: str) -> Mapping[str, datetime]:
        return await self._call(lambda: self._written(prefix))

    async def delete(self, keys: Collection[str]) -> None:
        if keys:
            await self._call(lambda: self._delete(keys))

    async def delete_prefix(self, prefix: str) -> int:
        return await self._call(lambda: self._delete_prefix(prefix))

    def deletion(self, key: str) -> Deletion:
        expires = timedelta(seconds=DELETION_SECONDS)
        url = self._client.get_presigned_url("DELETE", self._bucket, key, expires=expires)

        async def delete() -> None:
            await self._try(object(), lambda: self._delete_by(url))

        return delete

    async def _call(self, work: Callable[[], T]) -> T:
        """Tries a call until the server answers, TRIES times at most."""
        call, began = object(), asyncio.get_running_loop().time()
        for attempt in range(1, TRIES + 1):
            try:
                done = await self._try(call, work)
            except ObjectStoreUnavailableError as error:
                if self._watcher:
                    self._watcher.failing(call, error, asyncio.get_running_loop().time() - began)
                if attempt == TRIES:
                    raise
            except (ObjectMissing, ObjectChanged, ObjectTooLong, _Exists):
                self._answered(call)
                raise
            else:
                self._answered(call)
                return done
            limit = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** (attempt - 1))
            await asyncio.sleep(random.uniform(0, limit))  # noqa: S311  # jitter
        raise AssertionError(TRIES)

    async def _try(self, call: object, work: Callable[[], T]) -> T:
        """Makes one try in a thread; tells the watcher if that takes long."""
        trying = asyncio.get_running_loop().run_in_executor(self._threads, lambda: self._guarded(work))
        if self._watcher:
            try:
                done, _ = await asyncio.wait({trying}, timeout=SILENT_SECONDS)
            except asyncio.CancelledError:
                trying.cancel()
                raise
            if not done:
                self._watcher.silent(call, self._unavailable(f"no answer for {SILENT_SECONDS:.0f} s"))
        return await trying

    def _answered(self, call: object) -> None:
        if self._watcher:
            self._watcher.answered(call)

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except S3Error as error:
            raise self._explained(error) from error
        except (MinioException, HTTPError, OSError) as error:
            raise self._unavailable(f"{type(error).__name__}: {error}") from error

    def _explained(self, error: S3Error) -> Exception:
        match error.code:
            case "NoSuchKey":
                return ObjectMissing(error.object_name or "")
            case "PreconditionFailed":
                return _Exists()
        why = f"{error.code}: {error.message}"
        return self._refused(str(error.code), why) if refuses(error) else self._unavailable(why)

    def _refused(self, code: str, why: str) -> ObjectStoreRefusedError:
        advice = f"; {ADVICE[code]}" if code in ADVICE else ""
        return ObjectStoreRefusedError(f"{self._place} refuses: {why}{advice}", bucket=self._bucket, s3_code=code)

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

    def _put(self, key: str, data: bytes, headers: Mapping[str, str]) -> bool:
        sent = checksum(data)
        # minio's put_object takes no conditions, and would upload larger objects in parts, which not every server
        # puts together atomically. This is the request that it makes for small ones.
        result = self._client._put_object(  # noqa: SLF001
            self._bucket,
            key,
            data,
            headers={"Content-Type": "application/octet-stream", CHECKSUM_HEADER: sent, **headers},
        )
        return bool(result.http_headers.get(CHECKSUM_HEADER) == sent)

    def _stat(self, key: str) -> ObjectVersion | None:
        try:
            found = self._client.stat_object(self._bucket, key)
        except S3Error as error:
            if error.code != "NoSuchKey":
                raise
            # The answer to HEAD has no body, so minio cannot tell a missing bucket from a missing object.
            if not self._client.bucket_exists(self._bucket):
                raise self._refused("NoSuchBucket", "NoSuchBucket: it does not exist") from error
            return None
        return object_version(found.size or 0, found.etag or "", found.last_modified)

    def _read(self, key: str, limit: int) -> tuple[bytes, ObjectVersion | None]:
        response = self._client.get_object(self._bucket, key)
        try:
            # What is not decoded is not copied. The second read finds out whether an answer broke off.
            data = response.read(limit + 1, decode_content=False)
            while len(data) <= limit and (more := response.read(limit + 1 - len(data), decode_content=False)):
                data += more
            etag, modified = response.headers.get("etag", ""), response.headers.get("last-modified")
        finally:
            response.close()
            response.release_conn()
        if len(data) > limit:
            raise ObjectTooLong(key, limit)
        return data, object_version(len(data), etag, from_http_header(modified)) if modified else None

    def _describe(self, key: str, version: str) -> Described:
        try:
            found = self._client.stat_object(self._bucket, key, version_id=version or None)
        except S3Error as error:
            if error.code not in ("NoSuchKey", "NoSuchVersion", "MethodNotAllowed"):  # the last: it was deleted
                raise
            if not self._client.bucket_exists(self._bucket):
                raise self._refused("NoSuchBucket", "NoSuchBucket: it does not exist") from error
            raise ObjectMissing(key) from error
        headers = found.metadata or {}
        by_key = headers.get("x-amz-server-side-encryption", "") == "aws:kms" or any("customer" in h for h in headers)
        return Described(
            key=key,
            size=found.size or 0,
            etag=found.etag or "",
            version=found.version_id or "",
            md5="" if by_key else md5_of(found.etag),
        )

    def _described(self, prefix: str) -> Sequence[Described]:
        found = self._client.list_objects(self._bucket, prefix, recursive=True)
        return [
            Described(key=item.object_name or "", size=item.size or 0, etag=item.etag or "", md5=md5_of(item.etag))
            for item in found
            if not item.is_dir
        ]

    def _read_part(self, found: Described, offset: int, length: int) -> bytes:
        try:
            response = self._client.get_object(
                self._bucket,
                found.key,
                offset=offset,
                length=length,
                request_headers={"If-Match": f'"{found.etag}"'},
                version_id=found.version or None,
            )
        except S3Error as error:
            if error.code in ("PreconditionFailed", "InvalidRange"):
                raise ObjectChanged(found.key) from error
            raise
        try:
            return bytes(response.read())
        finally:
            response.close()
            response.release_conn()

    def _list(self, prefix: str) -> dict[str, int]:
        found = self._client.list_objects(self._bucket, prefix, recursive=True)
        return {item.object_name or "": item.size or 0 for item in found if not item.is_dir}

    def _written(self, prefix: str) -> dict[str, datetime]:
        found = self._client.list_objects(self._bucket, prefix, recursive=True)
        return {item.object_name or "": item.last_modified for item in found if not item.is_dir and item.last_modified}

    def _delete_by(self, url: str) -> None:
        status = self._pool.request("DELETE", url).status
        if status >= 500 or status in (408, 429):
            raise self._unavailable(f"a deletion was answered with {status}")
        if status >= 300 and status != 404:
            raise self._refused("AccessDenied", f"a deletion was answered with {status}")

    def _delete_prefix(self, prefix: str) -> int:
        keys = list(self._list(prefix))
        self._delete(keys)
        return len(keys)

    def _delete(self, keys: Collection[str]) -> None:
        for error in self._client.remove_objects(self._bucket, map(DeleteObject, keys)):
            why = f"{error.code}: {error.name}"
            if error.code == "AccessDenied":
                raise self._refused("AccessDenied", why)
            raise self._unavailable(why)


class _Client(Minio):
    """minio's client hashes each body for its signature, or for Content-MD5; what has a checksum is hashed already."""

    def _build_headers(
        self, host: str, headers: dict[str, Any] | None = None, body: bytes | None = None, creds: Any = None
    ) -> tuple[dict[str, Any], datetime]:
        sent = (headers or {}).get(CHECKSUM_HEADER)
        if not sent:
            return super()._build_headers(host, headers, body, creds)
        built, date = super()._build_headers(host, headers, None, creds)
        built["Content-Length"] = str(len(body or b""))
        built["x-amz-content-sha256"] = b64decode(sent).hex()
        built.pop("Content-MD5", None)
        return built, date


class _Exists(Exception):
    """The condition of a write does not hold: there is an object of that key."""


def md5_of(etag: str | None) -> str:
    """Returns the MD5 that an ETag is, unless the object was uploaded in parts: then it is none."""
    return etag if etag and re.fullmatch(r"[0-9a-f]{32}", etag) else ""


def object_version(size: int, etag: str, modified: datetime | None) -> ObjectVersion:
    return ObjectVersion(size=size, etag=etag.replace('"', ""), modified=str(modified))


def checksum(data: bytes) -> str:
    """Returns the SHA-256 of an object as S3 writes it."""
    return b64encode(hashlib.sha256(data).digest()).decode()


def refuses(error: S3Error) -> bool:
    """Returns whether a server has refused a request, so that repeating it does not help."""
    status = error.response.status if error.response is not None else 0
    return 400 <= status < 500 and status not in (408, 409, 429) and error.code not in HEALING_CODES


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
    pool = PoolManager(maxsize=THREADS, timeout=Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS), retries=NO_RETRIES)
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
    return pool
