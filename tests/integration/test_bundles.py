"""Code on its way out of an object store: each attempt has it as it was packed, or it is refused."""

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adjourn.objects import ObjectStore
from adjourn_worker.paths import Kept, WorkerPaths
from adjourn_worker.storage.bundles import BundleCorrupt, fetch_bundle
from adjourn_worker.storage.parts import PartStore
from tests.harness.bundle_archives import archive
from tests.harness.memory_objects import MemoryObjects


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[WorkerPaths]:
    made = WorkerPaths.prepare(tmp_path / "data", tmp_path)
    yield made
    made.remove_volatile()


async def put_bundle(store: ObjectStore, data: bytes) -> str:
    bundle = f"bundles/{hashlib.sha256(data).hexdigest()}"
    await store.put(f"{bundle}.tar.gz", data)
    return bundle


async def fetched(
    store: ObjectStore, bundle: str, paths: WorkerPaths, attempt: str = "a", kept: Kept | None = None
) -> Path:
    """Returns the directory with the code, as an attempt gets it."""
    (paths.attempts / attempt).mkdir(exist_ok=True)
    into = paths.attempts / attempt / "code"
    await fetch_bundle(PartStore(store), bundle, paths, kept or Kept(), into)
    return into


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


async def test_code_is_fetched_once_and_unpacked_for_each_attempt(store: ObjectStore, paths: WorkerPaths) -> None:
    bundle = await put_bundle(store, archive(**{"train.py": b"x = 1\n", "lib__a.py": b""}))
    first = await fetched(store, bundle, paths)
    second = await fetched(MemoryObjects(), bundle, paths, "b")  # which has nothing
    assert first != second
    assert files(first) == files(second) == {"train.py": b"x = 1\n", "lib/a.py": b""}
    assert list(paths.scratch.iterdir()) == []


async def test_no_attempt_sees_what_another_wrote_beside_its_code(memory: MemoryObjects, paths: WorkerPaths) -> None:
    bundle = await put_bundle(memory, archive(**{"train.py": b"x = 1\n"}))
    first = await fetched(memory, bundle, paths)
    (first / "train.py").write_bytes(b"x = 2\n")
    (first / "cache.json").write_bytes(b"{}")
    assert files(await fetched(memory, bundle, paths, "b")) == {"train.py": b"x = 1\n"}
    assert files(await fetched(memory, bundle, paths)) == {"train.py": b"x = 1\n"}  # the same attempt, prepared again


async def test_a_kept_bundle_that_another_attempt_removes_while_it_is_read(
    memory: MemoryObjects, paths: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = await put_bundle(memory, archive(a=b"1"))
    await fetched(memory, bundle, paths)
    (kept,) = paths.bundles.iterdir()
    utime = os.utime

    def overtaken(path: Path, *times: Any) -> None:
        if path == kept:
            kept.unlink()
        utime(path, *times)

    with monkeypatch.context() as patched:
        patched.setattr(os, "utime", overtaken)
        assert files(await fetched(MemoryObjects(), bundle, paths, "b")) == {"a": b"1"}


async def test_a_kept_bundle_that_was_changed_is_fetched_again(memory: MemoryObjects, paths: WorkerPaths) -> None:
    bundle = await put_bundle(memory, archive(a=b"1"))
    await fetched(memory, bundle, paths)
    (kept,) = paths.bundles.iterdir()
    kept.write_bytes(archive(a=b"2"))
    assert files(await fetched(memory, bundle, paths, "b")) == {"a": b"1"}
    assert kept.read_bytes() == memory.contents[f"{bundle}.tar.gz"]


async def test_bundles_that_were_not_used_for_longest_are_removed(memory: MemoryObjects, paths: WorkerPaths) -> None:
    contents = [archive(a=bytes([number])) for number in range(3)]
    names = [await put_bundle(memory, data) for data in contents]
    kept = Kept(bundle_bytes=2 * max(map(len, contents)))
    for time, name in enumerate((names[0], names[1], names[0])):
        await fetched(memory, name, paths, kept=kept)
        os.utime(paths.data / f"{name}.tar.gz", ns=(time, time))
    await fetched(memory, names[2], paths, kept=kept)
    assert {path.name for path in paths.bundles.iterdir()} == {f"{Path(names[n]).name}.tar.gz" for n in (0, 2)}


async def test_two_attempts_may_want_the_same_code_at_once(memory: MemoryObjects, paths: WorkerPaths) -> None:
    bundle = await put_bundle(memory, archive(a=b"1"))
    found = await asyncio.gather(*(fetched(memory, bundle, paths, attempt) for attempt in ("a", "b")))
    assert [files(directory) for directory in found] == [{"a": b"1"}] * 2
    assert list(paths.scratch.iterdir()) == []


async def test_code_that_is_not_what_its_name_says_is_refused(memory: MemoryObjects, paths: WorkerPaths) -> None:
    bundle = await put_bundle(memory, archive(a=b"1"))
    memory.contents[f"{bundle}.tar.gz"] = archive(a=b"2")
    with pytest.raises(BundleCorrupt, match="damaged"):
        await fetched(memory, bundle, paths)
    del memory.contents[f"{bundle}.tar.gz"]
    with pytest.raises(BundleCorrupt, match="no object"):
        await fetched(memory, bundle, paths)
    for name in ("bundles/../x", "bundles/abc", ""):
        with pytest.raises(BundleCorrupt, match="no name"):
            await fetched(memory, name, paths)
    assert list(paths.bundles.iterdir()) == []


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
        await fetched(memory, bundle, paths)
    assert list((paths.attempts / "a").iterdir()) == list(paths.scratch.iterdir()) == []
    assert not (paths.attempts / "evil").exists()
