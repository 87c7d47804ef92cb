"""A checkpoint as a file for others: through a control plane to a client, verified at each end."""

import asyncio
import errno
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_model
from torch import nn
from typer.testing import CliRunner, Result

from adjourn import Client, cli, errors, manifests, snapshots
from adjourn.export.download import download
from adjourn.export.file import export
from adjourn.internal.v1.trainer_pb2 import Snapshot
from adjourn.manifests import PART_BYTES
from adjourn.training.snapshot.writer import Slot, dumped
from adjourn.training.state.registry import State
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.checkpoint_service_pb2 import ReadCheckpointRequest
from adjourn.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub, add_CheckpointServiceServicer_to_server
from adjourn.v1.job_pb2 import JobSpec, Progress
from adjourn_control_plane.api.checkpoints import CheckpointService
from adjourn_control_plane.api.reads import Reads
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.store.interface import Change, JobName
from adjourn_worker.storage.fetch import read_manifest
from adjourn_worker.storage.parts import PartStore
from adjourn_worker.storage.persist import persist
from tests.harness.control_planes import Replica, refused, replica, to_the_end
from tests.harness.memory_objects import MemoryObjects
from tests.harness.memory_store import MemoryStore
from tests.harness.store_records import created, there

JOB = JobName("jobs/j")


class Tied(nn.Module):
    """Two names for one weight, and a layer with a version in its state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.norm(self.embed(batch)))
        return found


def trained() -> tuple[Tied, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(7)
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model(torch.arange(7)).square().sum().backward()
    optimizer.step()
    scheduler.step()
    return model, optimizer, scheduler


async def registered(store: MemoryStore, objects: MemoryObjects, directory: Path, **subjects: Any) -> Checkpoint:
    """Registers a checkpoint of `jobs/j` with this state, made as training and agent make one."""
    state = State(lambda: {"epoch": 3}, None)
    state.add(subjects)
    trees, blobs = state.encode()
    document = {"format": snapshots.FORMAT, "components": trees, "environment": {"torch": "2"}, "progress": {}}
    Slot(directory).write(dumped(document).encode(), blobs)
    stored = await store.get(JOB) or await created(store, JOB)
    token = FencingToken(attempt=1, nonce=secrets.token_hex(16), job_uid=stored.record.job.uid)
    assignment = Assignment(job=JOB, token=token, spec=JobSpec(entry_point="a:b", total_epochs=5))
    taken = Snapshot(directory=str(directory), sequence=1, progress=Progress(epoch=3, step=30), metrics={"loss": 0.5})
    checkpoint = await persist(PartStore(objects), assignment, taken, None, {}, lambda _: None)
    stored = await there(store, JOB)
    stored.record.job.latest_checkpoint = checkpoint.name
    stored.record.checkpoint.CopyFrom(checkpoint)
    await store.commit(Change(job=JOB, expected=stored.version, record=stored.record, checkpoints=[checkpoint]))
    return checkpoint


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
    async def run(*words: str) -> Result:
        words = ("--address", served.address, "checkpoint", "export", "j", *words)
        return await asyncio.to_thread(CliRunner().invoke, cli.app, list(words))

    return run


WITHOUT_ADJOURN = """
import sys
sys.modules["adjourn"] = None
import torch
from safetensors.torch import load_file
found = torch.load(sys.argv[1], weights_only=True)
model = torch.nn.Linear(3, 2)
model.load_state_dict(found["model"])
optimizer = torch.optim.SGD(model.parameters(), lr=9.0, momentum=0.9)
optimizer.load_state_dict(found["optimizer"])
flat = load_file(sys.argv[2])
assert torch.equal(flat["model.weight"], model.weight)
assert torch.equal(flat["optimizer.state.0.momentum_buffer"], optimizer.state[model.weight]["momentum_buffer"])
print(model.weight.sum().item(), optimizer.param_groups[0]["lr"], found["adjourn.checkpoint"]["epoch"])
"""


async def test_plain_pytorch_loads_both_files_without_adjourn(
    kept: MemoryStore, memory: MemoryObjects, adjourn: Adjourn, tmp_path: Path
) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    await registered(kept, memory, tmp_path / "slot", model=model, optimizer=optimizer)
    for form, name in (("torch", "a.pt"), ("safetensors", "a.safetensors")):
        result = await adjourn("--format", form, "-o", str(tmp_path / name))
        assert result.exit_code == 0, result.output
    words = [sys.executable, "-c", WITHOUT_ADJOURN, str(tmp_path / "a.pt"), str(tmp_path / "a.safetensors")]
    done = await asyncio.to_thread(subprocess.run, words, check=True, capture_output=True, text=True, timeout=120)
    said = done.stdout.split()
    assert said == [str(model.weight.sum().item()), "0.5", "3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "a.safetensors", "slot"]


async def test_every_kind_of_value_comes_back_from_a_torch_file(
    kept: MemoryStore, memory: MemoryObjects, adjourn: Adjourn, tmp_path: Path
) -> None:
    model, optimizer, scheduler = trained()
    model.head.weight.requires_grad = False
    values = {
        "deque": deque([1, 2.5], 9),
        "array": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::-1],
        "tuple": (1, "a", None, True, 1 << 700, float("inf"), 2j, b"x", bytearray(b"y"), torch.float16),
        "set": {1, 2},
        "frozen": frozenset([3]),
        "scalar": np.float32(0.5),
        "double": torch.tensor([1j], dtype=torch.complex128),
        "sparse": torch.eye(3).to_sparse(),
        5: torch.Size([2, 3]),
        "device": torch.device("cpu"),
    }
    checkpoint = await registered(
        kept, memory, tmp_path / "slot", model=model, optimizer=optimizer, scheduler=scheduler, values=values
    )
    drawn = torch.get_rng_state()
    done = await adjourn("--format", "torch", "-o", str(tmp_path / "a.pt"))
    assert done.exit_code == 0, done.output
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    assert set(found) == {"model", "optimizer", "scheduler", "values", "adjourn.checkpoint"}
    again, fresh = Tied(), torch.optim.Adam(Tied().parameters())
    again.load_state_dict(found["model"])
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert found["model"]._metadata == model.state_dict()._metadata  # type: ignore[attr-defined]
    assert found["model"]["embed.weight"].data_ptr() == found["model"]["head.weight"].data_ptr()
    fresh.load_state_dict(found["optimizer"])
    assert found["scheduler"] == scheduler.state_dict()
    about = found["adjourn.checkpoint"]
    assert (about["job"], about["checkpoint"], about["epoch"], about["step"]) == (JOB, checkpoint.name, 3, 30)
    assert about["component_digests"] == dict(checkpoint.component_digests)
    assert about["beside"]["model"]["frozen"] == ["embed.weight"]
    assert torch.equal(about["beside"]["random.torch"], drawn)
    plain = found["values"]
    assert plain.pop("double").tolist() == [1j]
    assert torch.equal(plain.pop("sparse").to_dense(), torch.eye(3))
    assert plain.pop("array").tolist() == [[2, 1, 0], [5, 4, 3]]
    expected = {**values, "deque": [1, 2.5], "frozen": {3}, "scalar": 0.5}
    expected["tuple"] = (1, "a", None, True, 1 << 700, float("inf"), 2j, b"x", b"y", torch.float16)
    assert plain == {key: expected[key] for key in plain}
    assert len(plain) == len(values) - 3


async def test_a_safetensors_file_has_a_tied_weight_once_and_its_own_library_reads_it(
    kept: MemoryStore, memory: MemoryObjects, adjourn: Adjourn, tmp_path: Path
) -> None:
    model, optimizer, _ = trained()
    checkpoint = await registered(kept, memory, tmp_path / "slot", model=model, optimizer=optimizer, lr=[0.5])
    alone, all_of_it = tmp_path / "model.safetensors", tmp_path / "all.safetensors"
    done = await adjourn("--format", "safetensors", "--component", "model", "-o", str(alone))
    assert done.exit_code == 0, done.output
    again = Tied()
    load_model(again, str(alone))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    done = await adjourn("--format", "safetensors", "-o", str(all_of_it))
    assert "values that are no tensors are left out" in done.output
    with safe_open(str(all_of_it), "pt") as file:
        metadata = file.metadata()
        assert metadata["model.head.weight"] == "model.embed.weight"
        assert metadata["adjourn.checkpoint.checkpoint"] == checkpoint.name
        names = set(file.keys())
        assert "model.head.weight" not in names
        moment = file.get_tensor("optimizer.state.0.exp_avg")
    assert torch.equal(moment, optimizer.state[model.embed.weight]["exp_avg"])


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"a": torch.tensor([1j], dtype=torch.complex128)}, "values.a is torch.complex128"),
        ({"a": torch.eye(2).to_sparse()}, "values.a is torch.sparse_coo"),
        ({"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}, "two tensors have the flat name values.a.b"),
        ({"a": 1}, "there is no tensor in it"),
    ],
    ids=["complex128", "sparse", "two of a name", "none"],
)
async def test_what_safetensors_cannot_hold_is_refused_by_name(
    kept: MemoryStore, memory: MemoryObjects, adjourn: Adjourn, tmp_path: Path, value: Any, why: str
) -> None:
    await registered(kept, memory, tmp_path / "slot", values=value)
    done = await adjourn("--format", "safetensors", "-o", str(tmp_path / "a"))
    assert done.exit_code == 1
    assert why in done.stderr
    assert "use --format torch" in done.stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("harm", ["flipped", "missing"])
@pytest.mark.parametrize("what", ["/parts/", "/manifests/"])
async def test_a_damaged_checkpoint_is_said_to_be_so_and_nothing_is_written(
    kept: MemoryStore, memory: MemoryObjects, adjourn: Adjourn, tmp_path: Path, what: str, harm: str
) -> None:
    checkpoint = await registered(kept, memory, tmp_path / "slot", model=nn.Linear(3, 2))
    key = next(key for key in memory.contents if what in key)
    if harm == "missing":
        del memory.contents[key]
    else:
        memory.contents[key] = bytes([memory.contents[key][0] ^ 1]) + memory.contents[key][1:]
    (tmp_path / "out").mkdir()
    done = await adjourn("--format", "torch", "-o", str(tmp_path / "out" / "a.pt"))
    assert done.exit_code == 1
    assert f"{checkpoint.name}: object {key} is {'missing' if harm == 'missing' else 'damaged'}" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


async def test_what_cannot_be_chosen_is_said(
    kept: MemoryStore, memory: MemoryObjects, adjourn: Adjourn, tmp_path: Path
) -> None:
    await created(kept, JOB)
    done = await adjourn("--format", "torch", "-o", str(tmp_path / "a"))
    assert (done.exit_code, done.stderr) == (1, "adjourn: jobs/j has no checkpoint yet\n")
    checkpoint = await registered(kept, memory, tmp_path / "slot", model=nn.Linear(3, 2))
    done = await adjourn("--format", "torch", "-o", str(tmp_path / "a"), "--checkpoint", "4")
    assert done.exit_code == 3
    assert "no checkpoint 4" in done.stderr
    done = await adjourn("--format", "torch", "-o", str(tmp_path / "a"), "--component", "ema")
    assert done.exit_code == 1
    assert "nothing was tracked as 'ema'; there are model" in done.stderr
    for which in ("3", "latest", checkpoint.name, checkpoint.name.rpartition("/")[2]):
        done = await adjourn("--format", "torch", "-o", str(tmp_path / "a"), "--checkpoint", which, "--force")
        assert done.exit_code == 0, done.output
    for words, why in (
        (["--format", "onnx", "-o", str(tmp_path / "b")], "neither safetensors nor torch"),
        (["--format", "torch", "-o", str(tmp_path / "a")], "--force replaces it"),
        (["--format", "torch", "-o", str(tmp_path / "none" / "a")], "there is no directory"),
    ):
        done = await adjourn(*words)
        assert done.exit_code == 2
        assert why in " ".join(done.stderr.split())


async def test_no_room_is_said_before_or_while_it_is_written_and_nothing_is_left(
    kept: MemoryStore, memory: MemoryObjects, adjourn: Adjourn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registered(kept, memory, tmp_path / "slot", model=nn.Linear(3, 2))
    out = tmp_path / "out"
    out.mkdir()
    words = ("--format", "torch", "-o", str(out / "a"))
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
        done = await adjourn(*words)
    assert done.exit_code == 1
    assert "no room: it takes" in done.stderr

    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", fill)
        done = await adjourn(*words)
    assert done.exit_code == 1
    assert f"no room: {out / 'a'}" in done.stderr
    assert list(out.iterdir()) == []


async def test_an_interrupted_export_leaves_what_was_there(
    kept: MemoryStore, memory: MemoryObjects, served: Replica, tmp_path: Path
) -> None:
    checkpoint = await registered(kept, memory, tmp_path / "slot", model=nn.Linear(3, 2))
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("before")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    def run() -> None:
        with Client(served.address) as client:
            export(client, checkpoint, out / "a", form="torch", on_bytes=interrupt)

    with pytest.raises(KeyboardInterrupt):
        await asyncio.to_thread(run)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("a", "before")]


class Flipping(Client):
    """A client on whose way some bits are flipped."""

    flips = 0
    read = 0

    def read_checkpoint(self, name: str, **what: Any) -> Generator[bytes, None, None]:
        self.read += 1
        for chunk in super().read_checkpoint(name, **what):
            if what.get("file") and self.flips:
                self.flips -= 1
                yield bytes([chunk[0] ^ 1]) + chunk[1:]
            else:
                yield chunk


async def test_a_part_that_arrives_flipped_is_asked_for_again(
    kept: MemoryStore, memory: MemoryObjects, served: Replica, tmp_path: Path
) -> None:
    big = torch.arange(PART_BYTES, dtype=torch.uint8).repeat(2)
    checkpoint = await registered(kept, memory, tmp_path / "slot", values={"big": big})
    heard: list[int] = []

    def run(flips: int) -> int:
        with Flipping(served.address) as client:
            client.flips = flips
            into = tmp_path / str(flips)
            into.mkdir()
            download(client, checkpoint, into, heard.append)
            return client.read

    assert await asyncio.to_thread(run, 0) == 3  # the manifest and two files
    assert heard == sorted(heard)
    assert heard[-1] == checkpoint.size_bytes
    assert await asyncio.to_thread(run, 1) == 4
    for name in (snapshots.TENSORS, snapshots.STATE):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "slot" / name).read_bytes()
    with pytest.raises(errors.CheckpointDamagedError, match="arrives with another content"):
        await asyncio.to_thread(run, 99)


async def test_a_state_of_other_digests_than_were_registered_is_refused(
    kept: MemoryStore, memory: MemoryObjects, served: Replica, tmp_path: Path
) -> None:
    checkpoint = await registered(kept, memory, tmp_path / "slot", model=nn.Linear(3, 2))
    checkpoint.component_digests["model"] = "0" * 64

    def run() -> None:
        with Client(served.address) as client:
            export(client, checkpoint, tmp_path / "a", form="torch")

    with pytest.raises(errors.CheckpointDamagedError, match="other digests than were registered: model"):
        await asyncio.to_thread(run)


async def test_a_file_is_read_from_any_byte_on(
    kept: MemoryStore, memory: MemoryObjects, served: Replica, tmp_path: Path
) -> None:
    big = torch.arange(PART_BYTES, dtype=torch.uint8).repeat(2)
    checkpoint = await registered(kept, memory, tmp_path / "slot", values={"big": big})
    whole = (tmp_path / "slot" / snapshots.TENSORS).read_bytes()

    async def read(file: str, offset: int) -> bytes:
        request = ReadCheckpointRequest(name=checkpoint.name, file=file, offset=offset)
        return b"".join([message.data async for message in served.checkpoints.ReadCheckpoint(request)])

    for offset in (0, 1, PART_BYTES - 1, PART_BYTES, 2 * PART_BYTES + 5, len(whole) - 1, len(whole)):
        assert await read(snapshots.TENSORS, offset) == whole[offset:]
    manifest = await read("", 0)
    assert await read("", 7) == manifest[7:]
    for file, offset in (("other", 0), ("", -1), ("", len(manifest) + 1), (snapshots.TENSORS, len(whole) + 1)):
        with refused(errors.InvalidRequestError):
            await read(file, offset)
    with refused(errors.NotFoundError):
        await to_the_end(served.checkpoints.ReadCheckpoint(ReadCheckpointRequest(name="jobs/j/checkpoints/9-9")))


async def test_a_checkpoint_whose_job_goes_while_it_is_read_is_not_called_damaged(
    kept: MemoryStore, memory: MemoryObjects, tmp_path: Path
) -> None:
    checkpoint = await registered(kept, memory, tmp_path / "slot", model=nn.Linear(3, 2))

    class Deleting(MemoryObjects):
        async def get(self, key: str, *, limit: int) -> bytes:
            if stored := await kept.get(JOB):
                await kept.commit(Change(job=JOB, expected=stored.version, record=None))
                self.contents.clear()
            return await super().get(key, limit=limit)

    objects = Deleting()
    objects.contents.update(memory.contents)
    async with replica(kept, objects=objects, controllers=False) as plane:
        with refused(errors.NotFoundError):
            await to_the_end(plane.checkpoints.ReadCheckpoint(ReadCheckpointRequest(name=checkpoint.name)))


async def test_a_reader_that_does_not_read_loses_its_place_to_others(
    kept: MemoryStore, memory: MemoryObjects, tmp_path: Path
) -> None:
    big = torch.zeros(6 * PART_BYTES, dtype=torch.uint8)
    big[::1000] = torch.arange(len(big[::1000])).to(torch.uint8)
    checkpoint = await registered(kept, memory, tmp_path / "slot", values={"big": big})
    asked, going_on = asyncio.Event(), asyncio.Event()

    class Held(MemoryObjects):
        async def get(self, key: str, *, limit: int) -> bytes:
            asked.set()
            await going_on.wait()
            return await super().get(key, limit=limit)

    objects = Held()
    objects.contents.update(memory.contents)
    server = grpc.aio.server()
    reads = Reads(objects, at_once=1)
    add_CheckpointServiceServicer_to_server(CheckpointService(kept, JobUpdater(kept), reads, silence=0.3), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    request = ReadCheckpointRequest(name=checkpoint.name, file=snapshots.TENSORS)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = CheckpointServiceStub(channel)
        stalled = stub.ReadCheckpoint(request)
        await asyncio.wait_for(asked.wait(), 20)  # it has the place
        with pytest.raises(errors.TooManyReadsError), reads.turn():
            pass
        going_on.set()
        async with asyncio.timeout(20):
            while True:
                try:
                    with reads.turn():
                        break
                except errors.TooManyReadsError:
                    await asyncio.sleep(0.05)
        with pytest.raises(grpc.aio.AioRpcError, match="nothing was read"):
            await to_the_end(stalled)
    await server.stop(None)


async def test_a_file_whose_bytes_lie_in_parts_of_several_checkpoints_is_read_in_order(
    memory: MemoryObjects, tmp_path: Path
) -> None:
    parts = PartStore(memory)
    token = FencingToken(attempt=1, nonce=secrets.token_hex(16), job_uid="01234567-89ab-4def-8123-456789abcdef")
    assignment = Assignment(job=JOB, token=token, spec=JobSpec(entry_point="a:b", total_epochs=5))
    big = torch.randint(0, 256, (3 * PART_BYTES,), dtype=torch.uint8)
    base = checkpoint = None
    for sequence in (1, 2, 3):
        state = State(lambda: {"epoch": 3}, None)
        state.add({"values": {"big": big}})
        trees, blobs = state.encode()
        slot = Slot(tmp_path / "slot")
        document = {"format": snapshots.FORMAT, "components": trees, "environment": {}, "progress": {}}
        slot.write(dumped(document).encode(), blobs)
        taken = Snapshot(directory=str(slot.directory), sequence=sequence)
        checkpoint = await persist(parts, assignment, taken, base, {}, lambda _: None)
        base = await read_manifest(parts, checkpoint)
        big[sequence * 1000 :: PART_BYTES // 3] += 1
    assert checkpoint is not None
    assert base is not None
    assert len(base.files[0].spans) > len(base.parts) > 4
    content = (tmp_path / "slot" / snapshots.TENSORS).read_bytes()
    for offset in (0, 1, 5000, PART_BYTES + 17, len(content) - 1, len(content)):
        read = Reads(memory).chunks(checkpoint, snapshots.TENSORS, offset)
        assert b"".join([chunk async for chunk in read]) == content[offset:]


async def test_the_page_on_checkpoints_tells_how_one_is_read_by_hand(
    kept: MemoryStore, memory: MemoryObjects, tmp_path: Path
) -> None:
    checkpoint = await registered(kept, memory, tmp_path / "slot", model=trained()[0])
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for key, data in memory.contents.items():
        path = tmp_path / "bucket" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "out").mkdir()
    words = [sys.executable, "-c", script, str(tmp_path / "bucket"), checkpoint.uri, str(tmp_path / "out")]
    await asyncio.to_thread(subprocess.run, words, check=True, timeout=60)
    for name in (snapshots.TENSORS, snapshots.STATE):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "slot" / name).read_bytes()
    document = json.loads(memory.contents[manifests.key_of(checkpoint, memory.bucket)])
    assert checkpoint.part_count == len(document["parts"])
    listed = set(re.findall(r"`(\w+)`", page.partition("## The manifest")[2].partition("## The files")[0]))
    assert document.keys() <= listed, "each field is in the table"
    with safe_open(str(tmp_path / "out" / snapshots.TENSORS), "pt") as file:
        assert "model/state_dict/norm.weight" in file.keys()  # noqa: SIM118 - it is no dict
