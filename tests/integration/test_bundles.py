"""Code on its way out of an object store: unpacked once and as it was packed, or refused."""

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from adjourn.objects import ObjectStore
from adjourn_worker.paths import WorkerPaths
from adjourn_worker.storage.bundles import BundleCorrupt, fetch_bundle
from tests.harness.bundle_archives import archive
from tests.harness.memory_objects import MemoryObjects


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[WorkerPaths]:
    made = WorkerPaths.prepare(tmp_path / "data", {}, tmp_path)
    yield made
    made.remove_volatile()


async def put_bundle(store: ObjectStore, data: bytes) -> str:
    bundle = f"bundles/{hashlib.sha256(data).hexdigest()}"
    await store.put(f"{bundle}.tar.gz", data)
    return bundle


async def test_code_is_unpacked_once(store: ObjectStore, paths: WorkerPaths) -> None:
    bundle = await put_bundle(store, archive(**{"train.py": b"x = 1\n", "lib__a.py": b""}))
    directory = await fetch_bundle(store, bundle, paths)
    assert directory == paths.bundle(bundle.removeprefix("bundles/"))
    assert (directory / "train.py").read_bytes() == b"x = 1\n"
    assert (directory / "lib" / "a.py").exists()
    assert list(paths.scratch.iterdir()) == []
    assert await fetch_bundle(MemoryObjects(), bundle, paths) == directory


async def test_two_jobs_may_want_the_same_code_at_once(memory: MemoryObjects, paths: WorkerPaths) -> None:
    bundle = await put_bundle(memory, archive(a=b"1"))
    first, second = await asyncio.gather(*(fetch_bundle(memory, bundle, paths) for _ in range(2)))
    assert first == second
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {"a": b"1"}
    assert list(paths.scratch.iterdir()) == []


async def test_code_that_is_not_what_its_name_says_is_refused(memory: MemoryObjects, paths: WorkerPaths) -> None:
    bundle = await put_bundle(memory, archive(a=b"1"))
    memory.contents[f"{bundle}.tar.gz"] = archive(a=b"2")
    with pytest.raises(BundleCorrupt, match="damaged"):
        await fetch_bundle(memory, bundle, paths)
    del memory.contents[f"{bundle}.tar.gz"]
    with pytest.raises(BundleCorrupt, match="no object"):
        await fetch_bundle(memory, bundle, paths)
    for name in ("bundles/../x", "bundles/abc", ""):
        with pytest.raises(BundleCorrupt, match="no name"):
            await fetch_bundle(memory, name, paths)


@pytest.mark.parametrize(
    "data",
    [b"not an archive", archive(a=b"1")[:-9], archive(**{"..__evil": b"1"})],
    ids=["garbage", "cut short", "leads out"],
)
async def test_code_that_cannot_be_unpacked_safely_is_refused(
    memory: MemoryObjects, paths: WorkerPaths, data: bytes
) -> None:
    bundle = await put_bundle(memory, data)
    with pytest.raises(BundleCorrupt, match="cannot be unpacked"):
        await fetch_bundle(memory, bundle, paths)
    assert list(paths.bundles.iterdir()) == list(paths.scratch.iterdir()) == []
    assert not (paths.data / "evil").exists()
