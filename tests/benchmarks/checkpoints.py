"""What checkpoints cost, as ratios to plain copies of the same bytes in the same run. `make bench-checkpoints` runs it.

States of 5, 50 and 500 MB: a module and its Adam. Training, its peers and what the agent does run in this process, one
after another; object storage is the embedded S3 server, with its files in memory (6 GB): no disk is measured. CPU times
are those of the thread that trains, or of this process; wall times are shown where waiting is what is measured, and
suffer from whatever else runs on the machine. What takes whole workers is measured with them (`workers.py`). The last
table has the bounds: there the least of several times counts, so that other load counts little.
"""

import asyncio
import contextlib
import functools
import math
import mmap
import os
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from adjourn import snapshots
from adjourn.internal.v1.trainer_pb2 import Snapshot
from adjourn.local import process_cleanup, seaweed
from adjourn.local.managed_process import ManagedProcess
from adjourn.local.ports import free_ports
from adjourn.objects import Deletion, ObjectStore, ObjectVersion, S3Objects, S3Settings
from adjourn.training.snapshot.round_trip import RoundTrip
from adjourn.training.snapshot.writer import SnapshotWriter
from adjourn.training.state.registry import State
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import JobSpec, Progress
from adjourn_worker.storage.fetch import fetch, read_manifest
from adjourn_worker.storage.parts import PartStore, each
from adjourn_worker.storage.persist import persist
from tests.benchmarks.workers import Observed, two_workers
from tests.harness.process_guard import guarded

T = TypeVar("T")

SHARED_MEMORY = Path("/dev/shm")
OBJECT = 8 << 20
"""Bytes of an object in a plain upload or download."""
CACHES = 128 << 20
"""Bytes that the caches of a core do not hold."""
PLACES = 20
"""Of a change that is scattered."""
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A state to measure with."""

    name: str
    blocks: int
    """Of a LayerNorm and a Linear: four parameters, and with Adam's state sixteen tensors."""
    width: int
    times: int
    """Snapshots taken, of each kind."""
    rounds: int
    """Of a new run and its two resumes."""
    steps: int
    """Of an epoch, with real workers."""


SIZES = (
    Size(name="5 MB", blocks=7, width=240, times=25, rounds=3, steps=200),
    Size(name="50 MB", blocks=16, width=505, times=9, rounds=3, steps=60),
    Size(name="500 MB", blocks=24, width=1310, times=4, rounds=1, steps=16),
)


@dataclass(slots=True)
class Costs:
    """Seconds of each kind of work, of this thread's CPU and by the clock."""

    cpu: dict[str, list[float]] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, work: Callable[[], T]) -> T:
        wall, cpu = time.perf_counter(), time.thread_time()
        done = work()
        self.cpu.setdefault(name, []).append(time.thread_time() - cpu)
        self.wall.setdefault(name, []).append(time.perf_counter() - wall)
        return done


class Unproven(SnapshotWriter):
    """A writer that leaves out the proofs, which the first snapshot and the last have in common with no copy."""

    def _prove(self, *args: object, **kwargs: object) -> dict[str, str]:
        return {}


class Counted:
    """Counts requests, and the bytes that they write."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self.bucket = objects.bucket
        self.requests = 0

    def watched(self, watcher: object) -> "Counted":
        return self

    async def ensure_bucket(self) -> None:
        await self._objects.ensure_bucket()

    async def put(self, key: str, data: bytes) -> bool:
        self.requests += 1
        return await self._objects.put(key, data)

    async def create(self, key: str, data: bytes) -> bool:
        self.requests += 1
        return await self._objects.create(key, data)

    async def get(self, key: str, *, limit: int) -> bytes:
        self.requests += 1
        return await self._objects.get(key, limit=limit)

    async def get_with_version(self, key: str, *, limit: int) -> tuple[bytes, ObjectVersion | None]:
        self.requests += 1
        return await self._objects.get_with_version(key, limit=limit)

    async def stat(self, key: str) -> ObjectVersion | None:
        self.requests += 1
        return await self._objects.stat(key)

    async def list(self, prefix: str) -> Mapping[str, int]:
        return await self._objects.list(prefix)

    async def written(self, prefix: str) -> Mapping[str, datetime]:
        return await self._objects.written(prefix)

    async def delete(self, keys: Collection[str]) -> None:
        await self._objects.delete(keys)

    async def delete_prefix(self, prefix: str) -> int:
        return await self._objects.delete_prefix(prefix)

    def deletion(self, key: str) -> Deletion:
        return self._objects.deletion(key)


class Training:
    """A state that changes as in training, and the snapshots of it."""

    def __init__(self, size: Size) -> None:
        torch.manual_seed(0)
        layers = [
            layer for _ in range(size.blocks) for layer in (nn.LayerNorm(size.width), nn.Linear(size.width, size.width))
        ]
        self.model = nn.Sequential(*layers)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.round_trip = RoundTrip(self.data)
        self.state = State(self.data, None)
        subjects = {"model": self.model, "optimizer": self.optimizer}
        self.round_trip.prepare(subjects)
        self.state.add(subjects)
        self.round_trip.seal()
        self.gradients = [torch.randn_like(parameter) for parameter in self.model.parameters()]
        self.activations = torch.zeros(CACHES, dtype=torch.uint8)
        self.steps = 0
        self.step()

    def data(self) -> Mapping[str, int]:
        return {"epoch": self.steps, "step": self.steps}

    def step(self) -> None:
        """Changes every tensor of the state, and leaves little of it in the caches, as a forward pass would."""
        for parameter, gradient in zip(self.model.parameters(), self.gradients, strict=True):
            parameter.grad = gradient.detach()  # another tensor each time: gradients that a loop keeps are saved
        self.optimizer.step()
        self.steps += 1
        self.activations.add_(1)

    def progress(self) -> Progress:
        return Progress(epoch=self.steps, step=self.steps)


def median_ratio(costs: Mapping[str, list[float]], name: str, base: str) -> float:
    return statistics.median(costs[name]) / statistics.median(costs[base])


def stalls(size: Size, training: Training, directory: Path) -> Costs:
    """Takes snapshots, the first and later ones of attempts; in between, plain copies and a peer's files."""
    costs = Costs()
    source, target = flat(training), warm(directory / "copy", flat(training).nbytes)
    later = SnapshotWriter([directory / "later"], CPU, training.round_trip)
    later.release(costs.add("proven", lambda: saved(later, training)))
    for _ in range(2):  # both slots are warm afterwards
        taken = [saved(later, training) for _ in range(2)]
        for snapshot in taken:
            later.release(snapshot)
    for number in range(size.times):
        training.step()
        costs.add("copy", lambda: target.copy_(source))
        training.step()
        later.release(costs.add("later", lambda: saved(later, training)))
        training.step()
        costs.add("torch.save", lambda: torch_saved(training, directory / "peer.pt"))
        if number < max(3, size.times // 3):
            for name in ("first", "cold"):
                writer = Unproven([directory / name], CPU, training.round_trip)
                if name == "first":
                    writer.prepare(training.state)
                    while writer.preparing:  # training goes on
                        time.sleep(0.001)
                training.step()
                costs.add(name, functools.partial(saved, writer, training))
                writer.stop_preparing()
                shutil.rmtree(directory / name)
    (directory / "peer.pt").unlink()
    (directory / "copy").unlink()
    return costs


def flat(training: Training) -> torch.Tensor:
    """Returns as many bytes as the tensors of a state have."""
    _, blobs = training.state.encode()
    return torch.ones(sum(blob.data.nbytes for blob in blobs.values()), dtype=torch.uint8)


def warm(path: Path, size: int) -> torch.Tensor:
    """Returns a file in memory that was written to before."""
    with path.open("w+b") as file:
        file.truncate(size)
        buffer = torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
    return buffer.fill_(1)


def saved(writer: SnapshotWriter, training: Training) -> Snapshot:
    snapshot = writer.save(training.state, training.progress(), {"loss": 0.5}, last=False)
    assert snapshot is not None
    return snapshot


def torch_saved(training: Training, path: Path) -> None:
    torch.save({"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}, path)


@dataclass(slots=True)
class Stored:
    """What it took to make checkpoints durable and to bring one back."""

    state: int
    """Bytes."""
    slots: float = math.nan
    """Memory of an attempt's slots, in states."""
    uploaded: dict[str, int] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    """Of this process; the least."""
    wall: dict[str, float] = field(default_factory=dict)
    """The least."""
    observed: Observed = field(default_factory=Observed)

    def share(self, name: str) -> float:
        """Returns the bytes that a checkpoint had to upload, in % of the first's."""
        return 100 * self.uploaded[name] / self.uploaded["first"]

    async def add(self, name: str, objects: Counted, work: Callable[[], "asyncio.Future[T]"]) -> T:
        requests, wall, cpu = objects.requests, time.perf_counter(), time.process_time()
        done = await work()
        self.cpu[name] = min(time.process_time() - cpu, self.cpu.get(name, math.inf))
        self.wall[name] = min(time.perf_counter() - wall, self.wall.get(name, math.inf))
        self.requests[name] = objects.requests - requests
        return done


Cell = Callable[[Costs, Stored], str]
Figure = Callable[[Costs, Stored], float]


async def storage(training: Training, directory: Path, objects: Counted) -> Stored:
    """Makes a first checkpoint durable, then ones of which little has changed; fetches the last."""
    writer = Unproven([directory / "slots"], CPU, training.round_trip)
    snapshot = saved(writer, training)
    writer.stop_preparing()
    tensors = Path(snapshot.directory) / snapshots.TENSORS
    stored = Stored(state=snapshot.size_bytes)
    token = FencingToken(attempt=1, nonce=secrets.token_hex(16), job_uid=str(uuid4()))
    assignment = Assignment(job="jobs/bench", token=token, spec=JobSpec(entry_point="a:b", total_epochs=5))
    parts = PartStore(objects)

    async def keep(name: str, base: Checkpoint | None) -> Checkpoint:
        manifest = await read_manifest(parts, base) if base else None
        checkpoint: Checkpoint = await stored.add(
            name, objects, lambda: asyncio.ensure_future(persist(parts, assignment, snapshot, manifest, {}, ignore))
        )
        stored.uploaded[name] = checkpoint.uploaded_bytes
        snapshot.sequence += 1
        return checkpoint

    first = await keep("first", None)
    await keep("nothing", first)
    change(tensors, places=1)
    second = await keep("one place", first)
    change(tensors, places=PLACES)
    newest = await keep("scattered", second)

    content = tensors.read_bytes()
    pieces = {f"plain/{token.job_uid}/{offset}": offset for offset in range(0, len(content), OBJECT)}

    async def put(key: str) -> None:
        await objects.put(key, content[pieces[key] : pieces[key] + OBJECT])

    async def get(key: str) -> None:
        data = await objects.get(key, limit=OBJECT)
        with (directory / "plain").open("r+b") as file:
            file.seek(pieces[key])
            file.write(data)

    await stored.add("plain upload", objects, lambda: asyncio.ensure_future(each(pieces, put)))
    for _ in range(3):
        (directory / "plain").write_bytes(b"")
        await stored.add("plain download", objects, lambda: asyncio.ensure_future(each(pieces, get)))
        await stored.add(
            "restore", objects, lambda: asyncio.ensure_future(fetch(PartStore(objects), newest, directory / "restored"))
        )
        assert (directory / "restored" / snapshots.TENSORS).read_bytes() == tensors.read_bytes()
        shutil.rmtree(directory / "restored")
        (directory / "plain").unlink()
    await objects.delete_prefix(f"checkpoints/{token.job_uid}/")
    await objects.delete_prefix(f"plain/{token.job_uid}/")
    return stored


def change(path: Path, *, places: int) -> None:
    """Changes one per cent of the bytes of a file, in so many places."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        length = len(content) // 100 // places
        begin = 2 * snapshots.HEADER_ALIGNMENT
        for place in range(places):
            offset = begin + int((len(content) - begin - length) * (place + 0.37) / places)
            content[offset : offset + length] = secrets.token_bytes(length)


def ignore(_: float) -> None:
    pass


@contextlib.asynccontextmanager
async def object_storage(directory: Path, memory: Path) -> AsyncIterator[tuple[S3Settings, S3Objects]]:
    ports = free_ports(seaweed.PORT_COUNT)
    access = seaweed.access_to(ports=ports, access_key=secrets.token_hex(10), secret_key=secrets.token_urlsafe(30))
    child = ManagedProcess(
        seaweed.program(
            directory=memory / "s3",
            logs=directory,
            ports=ports,
            access=access,
            environment=process_cleanup.marker(directory),
        )
    )
    child.start()
    try:
        await child.until_ready()
        async with S3Objects(access) as objects:
            yield access, objects
    finally:
        await child.stop()


async def request_costs(objects: S3Objects) -> tuple[float, float]:
    """Returns the CPU seconds of writing an object of 1 KB here, and of what one of 8 MiB takes more for each byte."""
    spent = {}
    for size, times in ((1000, 40), (OBJECT, 5)):
        data = secrets.token_bytes(size)
        began = time.process_time()
        for number in range(times):
            await objects.put(f"plain/request/{number}", data)
        spent[size] = (time.process_time() - began) / times
    return spent[1000], (spent[OBJECT] - spent[1000]) / OBJECT


def tables(found: Mapping[str, tuple[Costs, Stored]]) -> Iterator[Table]:
    yield table(
        "Stall of the training: CPU of its thread, by the clock in brackets, in plain copies into warm shared memory",
        found,
        {
            "a copy, ms": lambda costs, _: f"{1e3 * statistics.median(costs.cpu['copy']):.2f}",
            **{
                label: functools.partial(ratio_of_stall, name)
                for label, name in (
                    ("first snapshot of an attempt", "first"),
                    ("the same, before a slot is ready", "cold"),
                    ("later snapshot", "later"),
                    ("torch.save to shared memory", "torch.save"),
                    ("first, its resume rehearsed", "proven"),
                )
            },
        },
    )
    changes = ("nothing", "one place", "scattered")
    yield table(
        f"Next checkpoint, 1 % of the bytes changed in one place or in {PLACES}: bytes in % of the first's, requests, "
        "CPU in % of a plain upload's of all",
        found,
        {
            "first: requests, CPU": lambda _, stored: f"{stored.requests['first']}, {cpu_share(stored, 'first')}",
            **{f"{name}: bytes": functools.partial(share, name) for name in changes},
            **{f"{name}: requests, CPU": functools.partial(effort, name) for name in changes},
        },
    )
    yield table(
        "Restore, in plain downloads of the same bytes",
        found,
        {
            "CPU": lambda _, stored: f"{stored.cpu['restore'] / stored.cpu['plain download']:.2f}",
            "wall": lambda _, stored: f"{stored.wall['restore'] / stored.wall['plain download']:.2f}",
            "requests": lambda _, stored: f"{stored.requests['restore']} / {stored.requests['plain download']}",
        },
    )
    yield table(
        "Jobs on workers: least and median",
        found,
        {
            "resume where it was paused, s": lambda _, stored: spread(stored.observed.same),
            "resume on another worker, s": lambda _, stored: spread(stored.observed.elsewhere),
            "pause: boundary until the snapshot is told of, s": lambda _, stored: spread(stored.observed.stalls),
            "pause: boundary until the process is gone, s": lambda _, stored: spread(stored.observed.gone),
            "steps while a checkpoint becomes durable": lambda _, stored: spread(stored.observed.beside),
            "  the same, CPU": lambda _, stored: spread(stored.observed.beside_cpu),
            "a step after a resume, in one of a new run": lambda _, stored: spread(stored.observed.resumed),
        },
    )
    yield table(
        "Bounds: the least that was measured (of ratios the median), what it may be, and whether that holds",
        found,
        BOUNDS,
    )


def bound(measured: Figure, limit: Figure, form: str) -> Cell:
    """Returns what says whether a figure is within its limit."""

    def cell(costs: Costs, stored: Stored) -> str:
        figure, most = measured(costs, stored), limit(costs, stored)
        return f"{figure:{form}} / {most:{form}} {'yes' if round(figure, 2) <= most else 'NO'}"

    return cell


def over(name: str, costs: Costs, _: Stored) -> float:
    """Returns by how many milliseconds a stall is longer than 1.25 copies."""
    return 1e3 * (min(costs.cpu[name]) - 1.25 * min(costs.cpu["copy"]))


BOUNDS: Mapping[str, Cell] = {
    "later snapshot, beyond 1.25 copies, ms": bound(functools.partial(over, "later"), lambda *_: 1, ".2f"),
    "first snapshot, beyond 1.25 copies, ms": bound(functools.partial(over, "first"), lambda *_: 1, ".2f"),
    "steps while a checkpoint becomes durable, in those after": bound(
        lambda _, stored: statistics.median(stored.observed.beside or [math.nan]), lambda *_: 1.05, ".2f"
    ),
    "boundary until the process is gone; its stall and 0.3 s": bound(
        lambda _, stored: min(stored.observed.gone), lambda _, stored: min(stored.observed.stalls) + 0.3, ".2f"
    ),
    "resume where it was paused; three copies and 0.3 s": bound(
        lambda _, stored: min(stored.observed.same), lambda costs, _: 3 * min(costs.wall["copy"]) + 0.3, ".2f"
    ),
    "resume elsewhere; a plain download and 0.5 s": bound(
        lambda _, stored: min(stored.observed.elsewhere), lambda _, stored: stored.wall["plain download"] + 0.5, ".2f"
    ),
    "1 % changed in one place: bytes, %": bound(lambda _, stored: stored.share("one place"), lambda *_: 2, ".2f"),
    "1 % changed, scattered: bytes, %": bound(lambda _, stored: stored.share("scattered"), lambda *_: 2, ".2f"),
    "an attempt's slots, in states": bound(lambda _, stored: stored.slots, lambda *_: 2, ".2f"),
    "growth of the agent's memory, MB": bound(
        lambda _, stored: stored.observed.agent_growth / 1e6, lambda *_: 64, ".0f"
    ),
    "a step after a resume: difference; that of new runs, %": bound(
        lambda _, stored: 100 * abs(statistics.median(stored.observed.resumed) - 1),
        lambda _, stored: 100 * (max(stored.observed.new) / min(stored.observed.new) - 1),
        ".1f",
    ),
    "run.step() if nothing is asked, us": bound(
        lambda _, stored: 1e6 * min(stored.observed.calls), lambda *_: 1, ".2f"
    ),
}


def spread(figures: Sequence[float]) -> str:
    return f"{min(figures):.2f}, {statistics.median(figures):.2f}" if figures else "not known"


def ratio_of_stall(name: str, costs: Costs, _: Stored) -> str:
    return f"{median_ratio(costs.cpu, name, 'copy'):.2f} ({median_ratio(costs.wall, name, 'copy'):.2f})"


def share(name: str, _: Costs, stored: Stored) -> str:
    return f"{stored.share(name):.2f} %"


def effort(name: str, _: Costs, stored: Stored) -> str:
    return f"{stored.requests[name]}, {cpu_share(stored, name)}"


def cpu_share(stored: Stored, name: str) -> str:
    return f"{100 * stored.cpu[name] / stored.cpu['plain upload']:.0f} %"


def table(
    title: str,
    found: Mapping[str, tuple[Costs, Stored]],
    rows: Mapping[str, Cell],
) -> Table:
    made = Table(title=title, title_justify="left")
    made.add_column("")
    for name in found:
        made.add_column(name, justify="right")
    for label, cell in rows.items():
        made.add_row(label, *(cell(costs, stored) for costs, stored in found.values()))
    return made


async def measure(directory: Path, memory: Path) -> tuple[dict[str, tuple[Costs, Stored]], tuple[float, float]]:
    found = {}
    async with (
        object_storage(directory, memory) as (access, objects),
        two_workers(directory, memory / "workers", access, objects) as workers,
    ):
        request, byte = await request_costs(objects)
        for size in SIZES:
            training = Training(size)
            costs = stalls(size, training, memory)
            stored = await storage(training, memory, Counted(objects))
            held = sum(path.stat().st_blocks * 512 for path in (memory / "later").rglob("*"))
            stored.slots = held / stored.state
            stored.observed = await workers.observed(blocks=size.blocks, width=size.width, steps=size.steps, times=3)
            found[size.name] = costs, stored
            for name in ("slots", "later"):
                shutil.rmtree(memory / name)
    return found, (request, byte)


def main() -> None:
    torch.set_num_threads(1)
    console = Console(width=120)
    with (
        tempfile.TemporaryDirectory() as place,
        tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as memory,
        guarded(Path(place)),
    ):
        found, (request, byte) = asyncio.run(measure(Path(place), Path(memory)))
    for each_table in tables(found):
        console.print(each_table)
    console.print(f"A request that writes an object costs as much CPU here as {request / byte / 1000:,.0f} KB of one.")
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
