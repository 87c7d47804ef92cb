"""Whatever is printed, however often storage fails and the agent dies: what is stored is what was printed, in order."""

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from adjourn.errors import ObjectStoreUnavailableError
from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.stored_logs import log_prefix, segment_key, stored_log
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken
from adjourn_worker.attempt import training_log
from adjourn_worker.paths import WorkerPaths
from adjourn_worker.storage import log_plan
from adjourn_worker.storage.log_uploads import LogUploads
from tests.harness.memory_objects import MemoryObjects

SEGMENT, LIMIT = 64, 8192
"""Holes are made in pages of 4096 bytes."""
TOKEN = FencingToken(attempt=1, nonce="0123456789abcdef" * 2, job_uid="0b0fa75e-5a4d-4d59-8b40-a4f0f1b1a3c5")


class Failing(MemoryObjects):
    """Storage that fails at its next writes, before or after it has done them."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[bool] = []
        """Whether it is done all the same."""

    async def put(self, key: str, data: bytes) -> bool:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not False:
            await super().put(key, data)
        if failure is not None:
            raise ObjectStoreUnavailableError("the test says so", bucket="memory")
        return True


@dataclass
class World:
    """One attempt, its log, and the agent that stores it."""

    paths: WorkerPaths
    objects: Failing = field(default_factory=Failing)
    printed: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        directory = self.paths.attempt("jobs/a", TOKEN)
        directory.mkdir()
        self.log, self.kept = directory / "log", self.paths.log("jobs/a", TOKEN)
        self.log.touch()
        self.held = HeldAssignment(assignment=Assignment(job="jobs/a", token=TOKEN), directory=str(directory))
        self.new_agent()

    def new_agent(self) -> None:
        self.uploads = LogUploads(objects=self.objects, paths=self.paths, limit=LIMIT)
        self.uploads.take(self.held)

    def prints(self, size: int) -> None:
        line = b"".join(b"%07x\n" % number for number in range(len(self.printed), len(self.printed) + size, 8))
        with self.log.open("ab") as file:
            file.write(line)
        self.printed += line

    def bounds(self) -> None:
        training_log.bound(self.log, LIMIT)

    async def looks(self) -> None:
        for upload in self.uploads.uploads.values():
            upload.stored_at = float("-inf")
        await self.uploads.turn()

    def read(self) -> list[tuple[int, bytes]]:
        """Returns what is stored, as its readers go on from byte to byte: each stretch with its place."""
        prefix, found, offset = log_prefix(TOKEN), [], 0
        stored = stored_log(prefix, self.objects.contents)
        while segment := stored.after(offset):
            data = self.objects.contents[segment_key(prefix, segment)]
            assert len(data) == segment.size
            begin = max(offset, segment.begin)
            found.append((begin, data[begin - segment.begin :]))
            offset = segment.end
        return found


Step = Callable[[World], object]
STEPS = st.lists(
    st.one_of(
        st.integers(1, 6000).map(lambda size: lambda world: world.prints(size)),
        st.integers(1, 50).map(lambda size: lambda world: world.prints(size)),
        st.just(lambda world: world.looks()),
        st.just(lambda world: world.bounds()),
        st.just(lambda world: world.new_agent()),
        st.lists(st.booleans(), min_size=1, max_size=3).map(
            lambda way: lambda world: world.objects.failures.extend(way)
        ),
    ),
    max_size=40,
)


@given(steps=STEPS)
def test_what_is_stored_is_what_was_printed(steps: list[Step]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:  # it has holes, and is quick
            world = World(WorkerPaths.prepare(Path(directory)))
            for step in steps:
                done = step(world)
                if asyncio.iscoroutine(done):
                    await done
                for begin, data in world.read():
                    assert data == world.printed[begin : begin + len(data)]
            await ends_well(world)

    with mock.patch.object(log_plan, "SEGMENT_BYTES", SEGMENT):
        asyncio.run(run())


async def ends_well(world: World) -> None:
    """The attempt ends, its log is moved, the agent dies once more: storage has the log's end, and both halves."""
    world.log.rename(world.kept)
    world.uploads = LogUploads(objects=world.objects, paths=world.paths, limit=LIMIT)
    world.uploads.recover()
    while world.uploads.uploads:
        await world.uploads.turn()
    size, found = len(world.printed), world.read()
    assert stored_log(log_prefix(TOKEN), world.objects.contents).end == size
    assert list(world.paths.unstored_logs.iterdir()) == []
    covered = {place for begin, data in found for place in range(begin, begin + len(data))}
    assert covered >= {*range(min(size, LIMIT // 2)), *range(max(0, size - LIMIT // 2), size)}
    assert all(data == world.printed[begin : begin + len(data)] for begin, data in found)
    assert sum(map(len, world.objects.contents.values())) <= LIMIT + 2 * SEGMENT + len(b"end")
    left_out = size - LIMIT
    assert (b"bytes are left out here" in world.kept.read_bytes()) == (left_out > 0)
