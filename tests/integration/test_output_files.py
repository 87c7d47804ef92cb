"""`adjourn cp`: files of a run, from its checkpoint through a control plane to here."""

import asyncio
import json
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adjourn import cli, outputs, snapshots
from adjourn.internal.v1.trainer_pb2 import Snapshot
from adjourn.manifests import manifest_key
from adjourn.training.output_directory import OutputDirectory
from adjourn.training.snapshot.writer import Slot
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import JobSpec, Progress
from adjourn_control_plane.store.interface import Change, JobName
from adjourn_worker.storage.fetch import fetch, read_manifest
from adjourn_worker.storage.parts import PartStore
from adjourn_worker.storage.persist import persist
from tests.harness.control_planes import Replica, replica
from tests.harness.memory_objects import MemoryObjects
from tests.harness.memory_store import MemoryStore
from tests.harness.store_records import created, there

JOB = JobName("jobs/j")
FILES = {"model.pt": b"m" * 3_000_000, "plots/1.png": b"one", "plots/deep/2.png": b"two", "empty": b""}


@pytest.fixture
def kept() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def served(kept: MemoryStore, memory: MemoryObjects) -> AsyncIterator[Replica]:
    async with replica(kept, objects=memory, controllers=False) as plane:
        yield plane


Adjourn = Callable[..., Awaitable[Result]]


@pytest.fixture
def adjourn(served: Replica) -> Adjourn:
    async def run(*words: object) -> Result:
        return await asyncio.to_thread(
            CliRunner().invoke, cli.app, ["--address", served.address, "cp", *map(str, words)]
        )

    return run


async def persisted(
    store: MemoryStore, objects: MemoryObjects, directory: Path, sequence: int = 1, base: Checkpoint | None = None
) -> Checkpoint:
    """Registers a checkpoint of `jobs/j` that has the files of `directory`, and no state."""
    slot = Slot(directory.with_name("slot"))
    document = {"format": snapshots.FORMAT, "components": {}, "environment": {}, "progress": {}}
    slot.write(json.dumps(document).encode(), {}, output=(directory, OutputDirectory(directory).files()))
    stored = await store.get(JOB) or await created(store, JOB)
    token = FencingToken(attempt=1, nonce=secrets.token_hex(16), job_uid=stored.record.job.uid)
    assignment = Assignment(job=JOB, token=token, spec=JobSpec(entry_point="a:b", total_epochs=5))
    taken = Snapshot(directory=str(slot.directory), sequence=sequence, progress=Progress(epoch=sequence))
    parts = PartStore(objects)
    earlier = await read_manifest(parts, base) if base else None
    checkpoint = await persist(parts, assignment, taken, earlier, {}, lambda _: None)
    stored = await there(store, JOB)
    stored.record.job.latest_checkpoint = checkpoint.name
    stored.record.checkpoint.CopyFrom(checkpoint)
    await store.commit(Change(job=JOB, expected=stored.version, record=stored.record, checkpoints=[checkpoint]))
    return checkpoint


def write(directory: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def read(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


async def test_files_and_directories_are_copied_as_cp_does(
    kept: MemoryStore, memory: MemoryObjects, adjourn: Adjourn, tmp_path: Path
) -> None:
    await persisted(kept, memory, write(tmp_path / "output", FILES))
    here = tmp_path / "here"
    here.mkdir()
    (here / "model.pt").write_text("older")
    for words in (("j:model.pt", here), ("j:model.pt", here / "other.pt"), ("j:plots/", here), ("j:empty", here)):
        done = await adjourn(*words)
        assert done.exit_code == 0, done.output
    assert f"{here / 'empty'} has empty of" in done.stdout
    assert read(here) == {**FILES, "other.pt": FILES["model.pt"]}
    done = await adjourn("j:", tmp_path / "all")
    assert "after epoch 1 (4 files, 2.9 MiB)" in done.stdout
    assert read(tmp_path / "all") == FILES
    done = await adjourn("j:plots", tmp_path / "new")
    assert read(tmp_path / "new") == {"1.png": b"one", "deep/2.png": b"two"}


async def test_what_is_not_there_is_told_with_what_is(
    kept: MemoryStore, memory: MemoryObjects, adjourn: Adjourn, tmp_path: Path
) -> None:
    await persisted(kept, memory, write(tmp_path / "output", {"model.pt": b"1", "log.txt": b"2"}))
    for path in ("none", "model", "model.pt/x"):
        done = await adjourn(f"j:{path}", tmp_path)
        assert done.exit_code == 3
        assert f"there is no {path} in" in done.stderr
        assert "it has log.txt and model.pt." in done.stderr
    assert (await adjourn("model.pt")).exit_code == 2
    assert (await adjourn("none:model.pt")).exit_code == 3
    (tmp_path / "file").touch()
    done = await adjourn("j:model.pt", tmp_path / "file" / "below")
    assert (done.exit_code, "cannot write" in done.stderr) == (1, True)


async def test_an_earlier_checkpoint_has_its_own_files_and_shares_the_bytes(
    kept: MemoryStore, memory: MemoryObjects, adjourn: Adjourn, tmp_path: Path
) -> None:
    first = await persisted(kept, memory, write(tmp_path / "output", FILES))
    write(tmp_path / "output", {"plots/1.png": b"another", "added": b"a"})
    second = await persisted(kept, memory, tmp_path / "output", 2, first)
    assert second.uploaded_bytes < 10_000 < FILES["model.pt"].__len__()
    await adjourn("j:plots/1.png", tmp_path / "new")
    await adjourn("j:plots/1.png", tmp_path / "old", "--checkpoint", "1")
    assert ((tmp_path / "new").read_bytes(), (tmp_path / "old").read_bytes()) == (b"another", b"one")
    shutil.rmtree(tmp_path / "output")
    third = await persisted(kept, memory, tmp_path / "output", 3, second)
    into = tmp_path / "restored"
    await fetch(PartStore(memory), third, into)
    assert {path.name for path in into.iterdir()} == {snapshots.TENSORS, snapshots.STATE}
    assert "it has no files of its run" in (await adjourn("j:", tmp_path)).stderr


async def test_what_arrives_with_another_content_is_told(
    kept: MemoryStore, memory: MemoryObjects, adjourn: Adjourn, tmp_path: Path
) -> None:
    checkpoint = await persisted(kept, memory, write(tmp_path / "output", FILES))
    for key in [key for key in memory.contents if "/parts/" in key]:
        memory.contents[key] = memory.contents[key][::-1]
    done = await adjourn("j:model.pt", tmp_path / "model.pt")
    assert done.exit_code == 1
    assert checkpoint.name in done.stderr
    assert not (tmp_path / "model.pt").exists()
    del memory.contents[manifest_key(checkpoint.job_uid, checkpoint.name.rpartition("/")[2])]
    assert (await adjourn("j:model.pt", tmp_path / "model.pt")).exit_code == 1


def test_an_index_is_what_the_page_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    assert all(f"`{name}`" in page for name in outputs.FILES)
