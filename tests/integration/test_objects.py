"""Every object store keeps to the same contract; and what a real S3 server or the network may do to us."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from adjourn import objects as module
from adjourn.errors import AdjournError, ObjectStoreRefusedError, ObjectStoreUnavailableError
from adjourn.objects import ObjectMissing, ObjectStore, ObjectTooLong, S3Objects, S3Settings


@pytest.fixture
def prefix() -> str:
    return f"tests/{secrets.token_hex(8)}/"


async def test_what_was_put_is_there(store: ObjectStore, prefix: str) -> None:
    key = f"{prefix}a"
    await store.put(key, b"first")
    assert await store.get(key, limit=5) == b"first"
    assert await size(store, key) == 5
    await store.put(key, b"")
    assert await store.get(key, limit=0) == b""
    assert await size(store, key) == 0


async def test_more_than_one_part_of_a_multipart_upload_is_one_object(store: ObjectStore, prefix: str) -> None:
    data = secrets.token_bytes(11 << 20)
    await store.put(f"{prefix}large", data)
    assert await store.get(f"{prefix}large", limit=len(data)) == data


async def size(store: ObjectStore, key: str) -> int | None:
    found = await store.stat(key)
    return found.size if found else None


async def test_it_is_known_when_an_object_was_written(store: ObjectStore, prefix: str) -> None:
    began = datetime.now(UTC) - timedelta(seconds=2)  # a server may leave out the fraction
    await store.put(f"{prefix}a", b"first")
    await store.put(f"{prefix}b/c", b"other")
    found = await store.written(prefix)
    assert found.keys() == {f"{prefix}a", f"{prefix}b/c"}
    assert all(began <= time <= datetime.now(UTC) + timedelta(seconds=2) for time in found.values())


async def test_a_deletion_deletes_one_object_whether_it_is_there_or_not(store: ObjectStore, prefix: str) -> None:
    for name in ("a", "ab", "a/b"):
        await store.put(f"{prefix}{name}", b"x")
    await store.deletion(f"{prefix}a")()
    await store.deletion(f"{prefix}a")()
    await store.deletion(f"{prefix}none")()
    assert set(await store.list(prefix)) == {f"{prefix}ab", f"{prefix}a/b"}


async def test_a_deletion_that_comes_late_is_refused_by_the_server(
    s3_environment: dict[str, str], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender was stopped meanwhile; what lies there now may be needed."""
    async with S3Objects(S3Settings.from_environment(s3_environment)) as store:
        await store.ensure_bucket()
        await store.put(f"{prefix}a", b"x")
        await store.deletion(f"{prefix}b")()
        monkeypatch.setattr(module, "DELETION_SECONDS", 1)
        late = store.deletion(f"{prefix}a")
        deadline = time.time() + 2.5  # a server may count whole seconds
        while time.time() < deadline:
            await store.stat(f"{prefix}a")
        with pytest.raises(ObjectStoreRefusedError):
            await late()
        assert await store.get(f"{prefix}a", limit=1) == b"x"


async def test_a_deletion_through_a_wrong_key_is_refused(s3_environment: dict[str, str], prefix: str) -> None:
    wrong = S3Settings.from_environment({**s3_environment, "ADJOURN_S3_SECRET_KEY": "wrong"})
    async with S3Objects(S3Settings.from_environment(s3_environment)) as store, S3Objects(wrong) as refusing:
        await store.ensure_bucket()
        await store.put(f"{prefix}a", b"x")
        with pytest.raises(ObjectStoreRefusedError):
            await refusing.deletion(f"{prefix}a")()
        assert await store.stat(f"{prefix}a")


async def test_an_object_is_created_once(store: ObjectStore, prefix: str) -> None:
    assert await store.create(f"{prefix}a", b"first")
    assert not await store.create(f"{prefix}a", b"second")
    assert await store.get(f"{prefix}a", limit=9) == b"first"


async def test_of_many_writers_at_once_one_creates_an_object(store: ObjectStore, prefix: str) -> None:
    for turn in range(10):
        key = f"{prefix}{turn}"
        contents = [f"writer {number}".encode() for number in range(8)]
        created = await asyncio.gather(*(store.create(key, content) for content in contents))
        assert created.count(True) == 1
        assert await store.get(key, limit=100) == contents[created.index(True)]


async def test_a_version_tells_whether_somebody_wrote_other_content(store: ObjectStore, prefix: str) -> None:
    await store.put(f"{prefix}a", b"first")
    first = await store.stat(f"{prefix}a")
    assert await store.stat(f"{prefix}a") == first
    assert await store.get_with_version(f"{prefix}a", limit=5) == (b"first", first)
    await store.put(f"{prefix}a", b"other")
    assert await store.stat(f"{prefix}a") != first
    assert await store.get_with_version(f"{prefix}a", limit=5) != (b"first", first)


async def test_the_server_compares_what_it_receives(
    s3_environment: dict[str, str], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with S3Objects(S3Settings.from_environment(s3_environment)) as store:
        await store.ensure_bucket()
        assert await store.put(f"{prefix}a", b"right")
        sent = module.checksum(b"as it was sent")
        monkeypatch.setattr(module, "checksum", lambda _: sent)
        monkeypatch.setattr(module, "BACKOFF_MOST", 0.0)
        with pytest.raises(ObjectStoreUnavailableError, match="BadDigest"):  # so it is sent again
            await store.put(f"{prefix}b", b"damaged on its way")
        assert await store.stat(f"{prefix}b") is None


async def test_a_server_that_returns_no_checksum_has_compared_nothing() -> None:
    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, before: int) -> None:
        await reader.readexactly(4)
        writer.write(answer("200 OK"))
        await writer.drain()

    async with faulty(old) as (store, _):
        assert not await store.put("a", b"data")


async def test_what_is_not_there(store: ObjectStore, prefix: str) -> None:
    assert await store.stat(f"{prefix}a") is None
    with pytest.raises(ObjectMissing) as caught:
        await store.get(f"{prefix}a", limit=1)
    assert caught.value.key == f"{prefix}a"


async def test_what_is_longer_than_expected_is_not_read(store: ObjectStore, prefix: str) -> None:
    await store.put(f"{prefix}a", b"12345")
    with pytest.raises(ObjectTooLong) as caught:
        await store.get(f"{prefix}a", limit=4)
    assert caught.value.limit == 4


async def test_listing_and_deleting_below_a_prefix(store: ObjectStore, prefix: str) -> None:
    keys = {f"{prefix}x/{number}/y": number for number in range(3)}
    for key, size in keys.items():
        await store.put(key, b"." * size)
    await store.put(f"{prefix}xy", b"stays")
    assert await store.list(f"{prefix}x/") == keys
    assert await store.delete_prefix(f"{prefix}x/") == 3
    assert await store.delete_prefix(f"{prefix}x/") == 0
    assert await store.list(prefix) == {f"{prefix}xy": 5}


async def test_deleting_objects_leaves_others(store: ObjectStore, prefix: str) -> None:
    for name in ("a", "b", "ab"):
        await store.put(f"{prefix}{name}", b".")
    await store.delete([])
    for _ in range(2):
        await store.delete([f"{prefix}a", f"{prefix}b", f"{prefix}none"])
        assert await store.list(prefix) == {f"{prefix}ab": 1}


async def test_the_bucket_may_be_there_already(store: ObjectStore) -> None:
    await store.ensure_bucket()
    await store.ensure_bucket()


async def test_a_new_bucket_is_made(s3_environment: dict[str, str], prefix: str) -> None:
    bucket = f"tests-{secrets.token_hex(6)}"
    async with S3Objects(S3Settings.from_environment({**s3_environment, "ADJOURN_S3_BUCKET": bucket})) as store:
        for call in (store.get("a", limit=1), store.stat("a")):
            with pytest.raises(ObjectStoreRefusedError, match=r"NoSuchBucket.*correct ADJOURN_S3_BUCKET") as caught:
                await call
            assert caught.value.metadata == {"bucket": bucket, "s3_code": "NoSuchBucket"}
        await store.ensure_bucket()
        await store.put("a", b"1")
        assert store.bucket == bucket
        assert await size(store, "a") == 1


@pytest.mark.parametrize(
    ("variable", "code"),
    [("ADJOURN_S3_SECRET_KEY", "SignatureDoesNotMatch"), ("ADJOURN_S3_ACCESS_KEY", "InvalidAccessKeyId")],
)
async def test_a_wrong_key_is_refused_and_not_shown(s3_environment: dict[str, str], variable: str, code: str) -> None:
    wrong = {**s3_environment, variable: "not-the-key"}
    async with S3Objects(S3Settings.from_environment(wrong)) as store:
        with pytest.raises(ObjectStoreRefusedError, match=f"{code}.*correct {variable}") as caught:
            await store.put("a", b"1")
        assert caught.value.metadata["s3_code"] == code
        for call in (store.stat("a"), store.get("a", limit=1), store.list("a"), store.ensure_bucket()):
            with pytest.raises(ObjectStoreRefusedError):
                await call
    assert "not-the-key" not in f"{caught.value} {caught.value.metadata}"
    assert s3_environment["ADJOURN_S3_ACCESS_KEY"] not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        ("403 Forbidden", "AccessDenied", ObjectStoreRefusedError),
        ("403 Forbidden", "RequestTimeTooSkewed", ObjectStoreRefusedError),
        ("400 Bad Request", "ExpiredToken", ObjectStoreRefusedError),
        ("405 Method Not Allowed", "MethodNotAllowed", ObjectStoreRefusedError),
        ("400 Bad Request", "RequestTimeout", ObjectStoreUnavailableError),
        ("400 Bad Request", "IncompleteBody", ObjectStoreUnavailableError),
        ("409 Conflict", "OperationAborted", ObjectStoreUnavailableError),
        ("501 Not Implemented", "NotImplemented", ObjectStoreUnavailableError),
    ],
)
async def test_refusing_is_told_from_failing(status: str, code: str, kind: type[AdjournError]) -> None:
    body = f"<Error><Code>{code}</Code><Message>why</Message></Error>".encode()

    async def error(_: asyncio.StreamReader, writer: asyncio.StreamWriter, before: int) -> None:
        writer.write(answer(status, body, content_type="application/xml"))
        await writer.drain()

    async with faulty(error) as (store, _):
        with pytest.raises(kind, match=f"bucket models.*{code}: why"):
            await store.get("a", limit=1)


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


@dataclass(slots=True)
class FaultyServer:
    """Answers each request by a handler, which is told how many came before it."""

    handler: Handler
    requests: int = 0
    url: str = field(default="", init=False)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.requests += 1
            await self.handler(reader, writer, self.requests - 1)
        writer.close()


@contextlib.asynccontextmanager
async def faulty(handler: Handler) -> AsyncIterator[tuple[S3Objects, FaultyServer]]:
    """A client that tries again at once, and its server."""
    server = FaultyServer(handler)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    settings = S3Settings(endpoint=f"http://127.0.0.1:{port}", bucket="models", access_key="a", secret_key="s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BACKOFF_MOST", 0.0)
        async with listening, S3Objects(settings) as store:
            yield store, server


def answer(status: str, body: bytes = b"", *, length: int | None = None, content_type: str = "text/html") -> bytes:
    size = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {size}\r\nETag: x\r\n\r\n"
    return head.encode() + body


async def test_a_server_that_is_busy_is_asked_again() -> None:
    async def busy(_: asyncio.StreamReader, writer: asyncio.StreamWriter, before: int) -> None:
        writer.write(answer("503 Slow Down") if before < 2 else answer("200 OK", b"data"))
        await writer.drain()

    async with faulty(busy) as (store, server):
        assert await store.get("a", limit=10) == b"data"
        assert server.requests == 3


async def test_a_server_that_stays_broken_is_given_up() -> None:
    async def broken(_: asyncio.StreamReader, writer: asyncio.StreamWriter, before: int) -> None:
        writer.write(answer("500 No"))
        await writer.drain()

    async with faulty(broken) as (store, server):
        with pytest.raises(ObjectStoreUnavailableError, match="bucket models"):
            await store.stat("a")
        assert server.requests == module.TRIES


async def test_an_answer_that_breaks_off_is_read_again() -> None:
    async def breaks(_: asyncio.StreamReader, writer: asyncio.StreamWriter, before: int) -> None:
        writer.write(answer("200 OK", b"da", length=4) if before < 2 else answer("200 OK", b"data"))
        await writer.drain()

    async with faulty(breaks) as (store, server):
        assert await store.get("a", limit=10) == b"data"
        assert server.requests == 3


async def test_an_answer_that_always_breaks_off_is_never_taken_for_the_whole() -> None:
    async def breaks(_: asyncio.StreamReader, writer: asyncio.StreamWriter, before: int) -> None:
        writer.write(answer("200 OK", b"da", length=4))
        await writer.drain()

    async with faulty(breaks) as (store, _):
        with pytest.raises(ObjectStoreUnavailableError):
            await store.get("a", limit=10)


async def test_a_slow_link_may_take_longer_to_send_a_body_than_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)
    data = b"." * (16 << 20)  # more than the kernel's buffers hold

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, before: int) -> None:
        await asyncio.sleep(0.5)  # the slow link
        await reader.readexactly(len(data))
        writer.write(answer("200 OK"))
        await writer.drain()

    async with faulty(slow) as (store, server):
        await store.put("a", data)
        assert server.requests == 1


async def test_a_server_that_says_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Awaitable[None]]
) -> None:
    monkeypatch.setattr(module, "READ_SECONDS", 0.1)
    closing = asyncio.Event()

    async def mute(_: asyncio.StreamReader, writer: asyncio.StreamWriter, before: int) -> None:
        await closing.wait()

    async with faulty(mute) as (store, server):
        with pytest.raises(ObjectStoreUnavailableError, match="bucket models"):
            await store.get("a", limit=1)
        await eventually(lambda: server.requests >= module.TRIES)  # it may read the last one later
        assert server.requests == module.TRIES
        closing.set()


async def test_a_server_that_is_not_there_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_MOST", 0.0)
    settings = S3Settings(endpoint="http://127.0.0.1:1", bucket="models", access_key="a", secret_key="hush")
    async with S3Objects(settings) as store:
        with pytest.raises(ObjectStoreUnavailableError, match="refused") as caught:
            await store.put("a", b"1")
    assert "hush" not in f"{caught.value!r} {settings!r}"


async def test_a_page_of_a_proxy_is_not_an_answer() -> None:
    async def page(_: asyncio.StreamReader, writer: asyncio.StreamWriter, before: int) -> None:
        writer.write(answer("403 Forbidden", b"<html>go away</html>"))
        await writer.drain()

    async with faulty(page) as (store, _):
        with pytest.raises(ObjectStoreUnavailableError, match="403"):
            await store.get("a", limit=1)


class Heard:
    """A watcher that keeps what it hears."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def failing(self, call: object, error: ObjectStoreUnavailableError, seconds: float) -> None:
        self.told.append("failing")

    def silent(self, call: object, error: ObjectStoreUnavailableError) -> None:
        self.told.append("silent")

    def answered(self, call: object) -> None:
        self.told.append("answered")


async def test_each_try_is_told_to_who_watches(
    monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Awaitable[None]]
) -> None:
    """No library of ours tries again where nobody sees it."""
    heard = Heard()

    async def troubled(_: asyncio.StreamReader, writer: asyncio.StreamWriter, before: int) -> None:
        if before == 0:
            writer.write(answer("503 Slow Down"))
        elif before == 1:
            writer.write(answer("200 OK", b"da", length=4))
        elif before == 2:  # the connection is closed without a word
            monkeypatch.setattr(module, "SILENT_SECONDS", 0.05)
        else:
            await eventually(lambda: heard.told[-1] == "silent")
            writer.write(answer("200 OK", b"data"))
        await writer.drain()

    async with faulty(troubled) as (store, server):
        assert await store.watched(heard).get("a", limit=10) == b"data"
        assert server.requests == 4
    assert heard.told == ["failing", "failing", "failing", "silent", "answered"]
