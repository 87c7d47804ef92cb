"""Uploads of bundles: once in memory, all within a budget, hashed beside the event loop."""

import asyncio
import hashlib
import os
import threading
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adjourn import bundles, errors
from adjourn.channel import CHUNK_BYTES
from adjourn_control_plane.api import uploads
from adjourn_control_plane.api.uploads import Uploads
from tests.harness.memory_objects import MemoryObjects
from tests.harness.memory_store import MemoryStore

MIB = 1 << 20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A bundle of about 24 MiB."""
    noise = tmp_path_factory.mktemp("bundle") / "noise.bin"
    noise.write_bytes(os.urandom(24 * MIB))
    return bundles.pack(None, [noise])


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


class Hanging:
    """An upload whose sender stops in the middle until it is let go."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in chunks(self.data):
            yield chunk
        self.reached.set()
        await self.go_on.wait()


async def test_a_bundle_is_in_memory_once_while_it_is_received(bundle: bytes) -> None:
    objects = MemoryObjects()
    tracemalloc.start()
    try:
        name = await Uploads(MemoryStore(), objects).receive(chunks(bundle))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert name == f"bundles/{hashlib.sha256(bundle).hexdigest()}"
    assert await objects.get(bundles.object_key(name), limit=len(bundle)) == bundle
    assert len(bundle) < peak < 1.5 * len(bundle)


async def test_hashing_is_done_beside_the_event_loop(bundle: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()

    class Sha256:
        def __init__(self) -> None:
            self.real = hashlib.sha256()

        def update(self, data: bytes) -> None:
            threads.add(threading.get_ident())
            self.real.update(data)

        def hexdigest(self) -> str:
            return self.real.hexdigest()

    class Hashlib:
        sha256 = Sha256

    monkeypatch.setattr(uploads, "hashlib", Hashlib)
    await Uploads(MemoryStore(), MemoryObjects()).receive(chunks(bundle))
    assert threads
    assert threading.get_ident() not in threads


async def test_uploads_beyond_the_budget_are_refused_until_others_are_done(bundle: bytes) -> None:
    receiving = Uploads(MemoryStore(), MemoryObjects(), budget=len(bundle) + MIB)
    first = Hanging(bundle)
    under_way = asyncio.create_task(receiving.receive(first.chunks()))
    await first.reached.wait()
    with pytest.raises(errors.TooManyUploadsError) as caught:
        await receiving.receive(chunks(bundle))
    assert caught.value.retry_delay is not None
    small = bundles.pack(None, [Path(__file__)])
    assert await receiving.receive(chunks(small))  # a small one still fits
    first.go_on.set()
    assert await under_way == await receiving.receive(chunks(bundle))


@pytest.mark.parametrize("ending", ["cancelled", "invalid", "stalled"])
async def test_an_upload_that_fails_gives_its_memory_back(bundle: bytes, ending: str) -> None:
    receiving = Uploads(MemoryStore(), MemoryObjects(), budget=len(bundle), silence=0.2 if ending == "stalled" else 60)
    if ending == "invalid":
        with pytest.raises(errors.InvalidRequestError):
            await receiving.receive(chunks(b"x" * len(bundle)))
    elif ending == "stalled":
        with pytest.raises(errors.UploadStalledError):
            await receiving.receive(Hanging(bundle).chunks())
    else:
        hanging = Hanging(bundle)
        under_way = asyncio.create_task(receiving.receive(hanging.chunks()))
        await hanging.reached.wait()
        under_way.cancel()
        await asyncio.gather(under_way, return_exceptions=True)
    assert await receiving.receive(chunks(bundle))


async def test_a_chunk_and_a_bundle_have_a_limit() -> None:
    with pytest.raises(errors.InvalidRequestError, match=str(CHUNK_BYTES)):
        await Uploads(MemoryStore(), MemoryObjects()).receive(chunks_of(CHUNK_BYTES + 1, 1))
    with pytest.raises(errors.InvalidRequestError, match="keep data out of it"):
        await Uploads(MemoryStore(), MemoryObjects()).receive(chunks_of(CHUNK_BYTES, 65))


async def test_the_rest_of_a_refused_upload_is_read_but_not_for_ever() -> None:
    """As far as a bundle may go: a caller that still writes may not learn why it was refused."""
    read = 0

    async def counted(count: int) -> AsyncIterator[bytes]:
        nonlocal read
        async for chunk in chunks_of(CHUNK_BYTES + 1, count):
            read += 1
            yield chunk

    for count, expected in ((20, 20), (200, 65)):
        read = 0
        with pytest.raises(errors.InvalidRequestError):
            await Uploads(MemoryStore(), MemoryObjects()).receive(counted(count))
        assert read == expected


async def chunks_of(size: int, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(size)


async def test_a_bundle_that_is_damaged_in_storage_is_mended_by_uploading_it_again(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("x = 1\n")
    data = bundles.pack(tmp_path / "train.py")
    objects = MemoryObjects()
    name = await Uploads(MemoryStore(), objects).receive(chunks(data))
    objects.contents[bundles.object_key(name)] = bytes(len(data))
    assert await Uploads(MemoryStore(), objects).receive(chunks(data)) == name
    assert objects.contents[bundles.object_key(name)] == data


async def test_an_upload_waits_for_the_end_of_its_bundles_removal(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    data = bundles.pack(tmp_path / "train.py")
    store, objects = MemoryStore(), MemoryObjects()
    name = await Uploads(store, objects).receive(chunks(data))
    await store.doom_bundles([name])
    claim = await store.claim_bundle(name, (await store.bundle_marks()).doomed[name])
    assert claim is not None
    objects.contents.clear()
    with pytest.raises(errors.BundleBeingRemovedError, match="upload it again"):
        await Uploads(store, objects, removal=0.5).receive(chunks(data))
    assert objects.contents == {}
    uploading = asyncio.create_task(Uploads(store, objects).receive(chunks(data)))
    await store.bundle_removed(name, claim)
    assert await uploading == name
    assert objects.contents[bundles.object_key(name)] == data
