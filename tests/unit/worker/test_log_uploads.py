"""Logs that are cut back, are gone, or have bad notes. The rest is in tests/properties/test_stored_logs.py."""

import asyncio
import os
from pathlib import Path

import pytest

from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.stored_logs import Segment, log_prefix, segment_key, stored_log
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken
from adjourn_worker.attempt import training_log
from adjourn_worker.paths import WorkerPaths
from adjourn_worker.storage.log_uploads import LogUploads
from tests.harness.memory_objects import MemoryObjects

TOKEN = FencingToken(attempt=1, nonce="0123456789abcdef" * 2, job_uid="0b0fa75e-5a4d-4d59-8b40-a4f0f1b1a3c5")
PREFIX = log_prefix(TOKEN)
LIMIT = 1 << 16


@pytest.fixture
def paths(tmp_path: Path) -> WorkerPaths:
    return WorkerPaths.prepare(tmp_path / "data")


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
def uploads(paths: WorkerPaths, objects: MemoryObjects) -> LogUploads:
    uploads = LogUploads(objects=objects, paths=paths, limit=LIMIT)
    directory = paths.attempt("jobs/a", TOKEN)
    directory.mkdir()
    uploads.take(HeldAssignment(assignment=Assignment(job="jobs/a", token=TOKEN), directory=str(directory)))
    return uploads


async def turn(uploads: LogUploads) -> None:
    for upload in uploads.uploads.values():
        upload.stored_at = float("-inf")
    while await uploads.turn():
        pass


def text(objects: MemoryObjects) -> bytes:
    log, found = stored_log(PREFIX, objects.contents), b""
    while segment := log.after(len(found)):
        found += objects.contents[segment_key(PREFIX, segment)][len(found) - segment.begin :]
    return found


async def test_what_comes_after_a_log_was_cut_back_is_stored_behind_what_came_before(
    uploads: LogUploads, objects: MemoryObjects, paths: WorkerPaths
) -> None:
    """As on file systems without holes: the log is cut back to its first half, then goes on."""
    log = paths.attempt("jobs/a", TOKEN) / "log"
    log.write_bytes(b"a" * 50 + b"b" * 50)
    await turn(uploads)
    for more in (b"c", b"d"):
        with log.open("r+b") as file:
            file.truncate(50)
        await turn(uploads)
        with log.open("ab") as file:
            file.write(more * 20)
        await turn(uploads)
    assert text(objects) == b"a" * 50 + b"b" * 50 + b"c" * 20 + b"d" * 20


@pytest.mark.parametrize("stored", [True, False])
async def test_a_log_that_is_gone_is_not_called_whole(
    uploads: LogUploads, objects: MemoryObjects, paths: WorkerPaths, *, stored: bool
) -> None:
    log = paths.attempt("jobs/a", TOKEN) / "log"
    log.write_bytes(b"one\n")
    if stored:
        await turn(uploads)
    log.unlink()
    uploads.end(log.parent.name, launched=True)
    await turn(uploads)
    assert text(objects) == (b"one\n" if stored else b"")
    assert stored_log(PREFIX, objects.contents).end is None
    assert (uploads.uploads, list(paths.unstored_logs.iterdir())) == ({}, [])


async def test_logs_are_settled_once_their_notes_are_gone(
    uploads: LogUploads, paths: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drain that ends before would leave them."""
    settled: list[bool] = []
    unlink = Path.unlink

    def seen(path: Path, *, missing_ok: bool = False) -> None:
        settled.append(uploads.settled)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", seen)
    uploads.end(paths.attempt("jobs/a", TOKEN).name, launched=False)
    await turn(uploads)
    assert (settled, uploads.settled) == ([False], True)


async def test_a_note_that_was_written_halfway_is_removed(paths: WorkerPaths, objects: MemoryObjects) -> None:
    for name, content in (("a", ""), ("b", TOKEN.job_uid), ("c", f"{TOKEN.job_uid} logs/another/")):
        (paths.unstored_logs / name).write_text(content)
    uploads = LogUploads(objects=objects, paths=paths, limit=LIMIT)
    uploads.recover()
    assert (uploads.uploads, list(paths.unstored_logs.iterdir())) == ({}, [])


async def test_nobody_waits_for_logs_while_storage_fails(uploads: LogUploads, paths: WorkerPaths) -> None:
    uploads.end(paths.attempt("jobs/a", TOKEN).name, launched=True)
    uploads.failing = True
    async with asyncio.timeout(1):
        await uploads.settle(3600)


async def test_what_is_given_back_to_the_disk_just_as_it_is_read_is_left_out(
    uploads: LogUploads, objects: MemoryObjects, paths: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = paths.attempt("jobs/a", TOKEN) / "log"
    log.write_bytes(b"a" * LIMIT)
    pread = os.pread

    def overtaken(descriptor: int, size: int, offset: int) -> bytes:
        if offset == LIMIT // 2 and log.stat().st_size == LIMIT:
            with log.open("ab") as file:
                file.write(b"b" * LIMIT)
            training_log.bound(log, LIMIT)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", overtaken)
    for _ in range(2):
        await turn(uploads)
    half = LIMIT // 2
    assert stored_log(PREFIX, objects.contents).segments == (Segment(0, half), Segment(2 * LIMIT - half, 2 * LIMIT))
    assert objects.contents[segment_key(PREFIX, Segment(2 * LIMIT - half, 2 * LIMIT))] == b"b" * half
