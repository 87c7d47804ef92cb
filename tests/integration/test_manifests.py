"""A manifest is created once, whatever becomes of the answer, and whoever else writes at the same time."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

import pytest

from adjourn.errors import ObjectStoreUnavailableError
from adjourn.objects import ObjectMissing, ObjectStore, ObjectTooLong, S3Objects, S3Settings
from adjourn_worker.storage.parts import KeyTaken, PartStore
from tests.harness.memory_objects import MemoryObjects

MINE, THEIRS = (b'{"format":"adjourn.checkpoint/2","job":"jobs/%s"}' % job for job in (b"mine", b"theirs"))


def quick(objects: ObjectStore) -> PartStore:
    """Returns a store that does not wait before it looks again."""
    return PartStore(objects, again_seconds=0)


@dataclass(slots=True)
class Cutting:
    """Hands requests to a real server; of those that write, so many answers are cut off after they were carried out."""

    server: str
    cuts: int
    written: int = field(default=0, init=False)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(length(head))
            address = urlsplit(self.server)
            upstream, sink = await asyncio.open_connection(address.hostname, address.port)
            sink.write(head + body)
            answer = await upstream.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HEAD "):
                answer += await upstream.readexactly(length(answer))
            sink.close()
            cut = head.startswith(b"PUT ") and self.written < self.cuts
            self.written += head.startswith(b"PUT ")
            if not cut:
                writer.write(answer)
                await writer.drain()
        writer.close()


def length(head: bytes) -> int:
    """Returns the Content-Length of a head; 0 if it has none."""
    values = [line.partition(b":")[2] for line in head.lower().splitlines() if line.startswith(b"content-length:")]
    return int(values[0]) if values else 0


@contextlib.asynccontextmanager
async def cutting(settings: S3Settings, cuts: int) -> AsyncIterator[tuple[S3Objects, Cutting]]:
    proxy = Cutting(settings.endpoint, cuts)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening, S3Objects(replace(settings, endpoint=f"http://127.0.0.1:{port}")) as objects:
        yield objects, proxy


@pytest.fixture
async def real(s3_environment: dict[str, str]) -> AsyncIterator[tuple[S3Settings, S3Objects]]:
    settings = S3Settings.from_environment(s3_environment)
    async with S3Objects(settings) as objects:
        await objects.ensure_bucket()
        yield settings, objects


@pytest.fixture
def key() -> str:
    return f"tests/{secrets.token_hex(8)}"


@pytest.mark.parametrize("cuts", [1, 2])
async def test_a_write_whose_answer_was_lost_has_succeeded(
    real: tuple[S3Settings, S3Objects], key: str, cuts: int
) -> None:
    """The repeat is told that there is an object of that key, which is its own."""
    settings, objects = real
    async with cutting(settings, cuts) as (through, proxy):
        await quick(through).create_manifest(key, MINE)
        assert proxy.written == cuts + 1
    assert await objects.get(key, limit=100) == MINE


async def test_a_write_none_of_whose_answers_came_succeeds_when_it_is_tried_again(
    real: tuple[S3Settings, S3Objects], key: str
) -> None:
    settings, _ = real
    async with cutting(settings, 1000) as (through, proxy):
        with pytest.raises(ObjectStoreUnavailableError):
            await quick(through).create_manifest(key, MINE)
        written = proxy.written
        assert written > 1
        await quick(through).create_manifest(key, MINE)
        assert proxy.written == written, "it was found there, and not written again"


async def test_a_lost_answer_to_the_write_of_another_is_not_taken_for_ours(
    real: tuple[S3Settings, S3Objects], key: str
) -> None:
    settings, objects = real
    await objects.put(key, THEIRS)
    async with cutting(settings, 1) as (through, _):
        with pytest.raises(KeyTaken, match=key):
            await quick(through).create_manifest(key, MINE)
    assert await objects.get(key, limit=100) == THEIRS


async def test_of_two_writers_of_one_manifest_one_is_told_that_it_is_not_alone(
    real: tuple[S3Settings, S3Objects], key: str
) -> None:
    settings, objects = real
    async with S3Objects(settings) as other:
        for turn in range(10):
            writers = [quick(objects), quick(other)]
            contents = [MINE, THEIRS]
            writes = [
                writer.create_manifest(f"{key}-{turn}", content)
                for writer, content in zip(writers, contents, strict=True)
            ]
            outcomes = await asyncio.gather(*writes, return_exceptions=True)
            taken = [isinstance(outcome, KeyTaken) for outcome in outcomes]
            assert sorted(taken) == [False, True]
            assert await objects.get(f"{key}-{turn}", limit=100) == contents[taken.index(False)]


# What is read under the key of one's own manifest may be damaged.

GARBLED = {
    "flipped": bytes([MINE[0] ^ 1]) + MINE[1:],
    "short": MINE[:-1],
    "empty": b"",
    "zeros": bytes(len(MINE)),
    "json": b"{}",
    "no object": b"[1]",
    "too long": bytes((64 << 20) + 1),
}


class Misread(MemoryObjects):
    """Answers so many reads with something else than what lies there; None: as if nothing did."""

    def __init__(self, misreads: int, wrong: bytes | None) -> None:
        super().__init__()
        self.misreads = misreads
        self.wrong = wrong
        self.puts = 0

    async def get(self, key: str, *, limit: int) -> bytes:
        if self.misreads:
            self.misreads -= 1
            if self.wrong is None:
                raise ObjectMissing(key)
            if len(self.wrong) > limit:
                raise ObjectTooLong(key, limit)
            return self.wrong
        return await super().get(key, limit=limit)

    async def put(self, key: str, data: bytes) -> bool:
        self.puts += 1
        return await super().put(key, data)


@pytest.mark.parametrize("wrong", [*GARBLED, "theirs", "missing"])
@pytest.mark.parametrize("there", [False, True])
async def test_one_read_that_is_wrong_fences_nobody_and_writes_nothing_again(wrong: str, there: bool, key: str) -> None:
    """The network flips a bit, or a server that is starting does not know yet what it has."""
    objects = Misread(2, {**GARBLED, "theirs": THEIRS, "missing": None}[wrong])
    if there:
        await objects.put(key, MINE)
    objects.puts = 0
    await quick(objects).create_manifest(key, MINE)
    assert objects.contents == {key: MINE}
    assert objects.puts == (0 if there else 1)


@pytest.mark.parametrize("garbled", GARBLED)
async def test_a_manifest_of_ours_that_storage_has_damaged_is_written_again(garbled: str, key: str) -> None:
    objects = MemoryObjects()
    await objects.put(key, GARBLED[garbled])
    await quick(objects).create_manifest(key, MINE)
    assert objects.contents[key] == MINE


async def test_storage_that_goes_on_damaging_it_is_failing(key: str) -> None:
    objects = Misread(100, GARBLED["flipped"])
    with pytest.raises(ObjectStoreUnavailableError):
        await quick(objects).create_manifest(key, MINE)


@pytest.mark.parametrize("version", [b"1", b"2", b"3"])
async def test_a_manifest_of_another_version_is_left_alone(version: bytes, key: str) -> None:
    objects = MemoryObjects()
    theirs = THEIRS.replace(b"checkpoint/2", b"checkpoint/" + version)
    await objects.put(key, theirs)
    with pytest.raises(KeyTaken, match=key):
        await quick(objects).create_manifest(key, MINE)
    assert objects.contents[key] == theirs
