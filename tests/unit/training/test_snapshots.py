import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from adjourn import snapshots
from adjourn.snapshots import STATE, TENSORS, SnapshotInvalid
from adjourn.training.snapshot.writer import Slot, dumped
from adjourn.training.state.codec import Encoder


def write(directory: Path, **components: Any) -> dict[str, str]:
    """Writes a snapshot; returns digests computed from the live values."""
    encoder = Encoder()
    trees = {name: encoder.encode(value, (name,)) for name, value in components.items()}
    document = {"format": snapshots.FORMAT, "components": trees, "environment": {}, "progress": {}}
    Slot(directory).write(dumped(document).encode(), encoder.blobs)
    return {
        name: snapshots.component_digest(tree, lambda blob: encoder.blobs[blob].chunks())
        for name, tree in trees.items()
    }


STATE_DICT = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(3), "none": torch.empty(0, 4)}


def test_file_is_a_safetensors_file(tmp_path: Path) -> None:
    """Read as https://github.com/huggingface/safetensors#format says."""
    write(tmp_path, model=STATE_DICT, half=torch.tensor([1.5, 2.5], dtype=torch.bfloat16), mask=torch.tensor([True]))
    content = (tmp_path / TENSORS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    assert content[8:9] == b"{"
    assert header.pop("__metadata__") == {"format": "pt"}
    assert header["model/weight"]["dtype"] == "F32"
    assert header["model/weight"]["shape"] == [2, 3]
    assert header["model/steps"]["shape"] == []
    assert header["half"]["dtype"] == "BF16"
    begin, end = header["model/weight"]["data_offsets"]
    assert struct.unpack("<6f", data[begin:end]) == (0, 1, 2, 3, 4, 5)
    offsets = sorted(entry["data_offsets"] for entry in header.values())
    assert [end for _, end in offsets] == [begin for begin, _ in offsets[1:]] + [len(data)]
    sizes = {"F32": 4, "I64": 8, "BF16": 2, "BOOL": 1}
    assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for entry in header.values())


def test_digests_of_files_and_of_live_state_are_equal(tmp_path: Path) -> None:
    live = write(tmp_path, model=STATE_DICT, optimizer={"lr": 0.1, 3: (1, None)}, empty={})
    assert snapshots.component_digests(tmp_path) == live
    assert all(len(digest) == 64 for digest in live.values())


@pytest.mark.parametrize(
    "other",
    [
        {**STATE_DICT, "steps": torch.tensor(4)},
        {**STATE_DICT, "weight": STATE_DICT["weight"].reshape(3, 2)},
        {**STATE_DICT, "weight": STATE_DICT["weight"].view(torch.int32)},
        {**STATE_DICT, "weight": torch.tensor([[-0.0, 1, 2], [3, 4, 5]])},
        {**STATE_DICT, "more": 1},
        {**STATE_DICT, "none": torch.empty(4, 0)},
        {name: value.numpy() for name, value in STATE_DICT.items()},
        list(STATE_DICT.values()),
    ],
    ids=str,
)
def test_digest_sees_every_difference(tmp_path: Path, other: Any) -> None:
    assert write(tmp_path / "a", model=STATE_DICT) != write(tmp_path / "b", model=other)


def test_order_of_keys_does_not_count(tmp_path: Path) -> None:
    one = write(tmp_path / "a", it={"x": torch.zeros(2), "y": torch.ones(3), 1: "a", None: {3, 4}})
    two = write(tmp_path / "b", it={None: {4, 3}, 1: "a", "y": torch.ones(3), "x": torch.zeros(2)})
    assert one == two == snapshots.component_digests(tmp_path / "b")


def test_state_digest_depends_on_names_and_digests_alone() -> None:
    digest = snapshots.state_digest({"model": "aa", "optimizer": "bb"})
    assert digest == snapshots.state_digest({"optimizer": "bb", "model": "aa"})
    assert digest != snapshots.state_digest({"model": "bb", "optimizer": "aa"})
    assert len(digest) == 64


HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def tensors_file(header: Any, data: int = 8) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 9) + b"not json!",
        tensors_file(["a"]),
        tensors_file({"a": {"dtype": "F32", "shape": [2]}}),
        tensors_file({"a": {**HEADER["a"], "dtype": "F33"}}),
        tensors_file({"a": {**HEADER["a"], "shape": [3]}}),
        tensors_file({"a": {**HEADER["a"], "shape": [-2]}}),
        tensors_file({"a": {**HEADER["a"], "data_offsets": [8, 0]}}),
        tensors_file({"a": {**HEADER["a"], "data_offsets": [1 << 40, (1 << 40) + 8]}}),
        tensors_file({"a": {**HEADER["a"], "data_offsets": [-8, 0]}}),
        tensors_file({**HEADER, "b": {**HEADER["a"]}}),
        tensors_file(HEADER, data=7),
        tensors_file(HEADER, data=9),
        struct.pack("<Q", 4000) + b"[" * 4000,
    ],
)
def test_headers_that_do_not_fit_the_file_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / TENSORS).write_bytes(content)
    with pytest.raises(SnapshotInvalid, match=TENSORS):
        snapshots.read_layout(tmp_path / TENSORS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"format": 2, "components": 3, "environment": {}, "progress": {}}',
        b"[" * 100_000,
    ],
)
def test_states_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE).write_bytes(content)
    with pytest.raises(SnapshotInvalid, match=STATE):
        snapshots.read_state(tmp_path)


@pytest.mark.parametrize("other", [1, snapshots.FORMAT + 1, "2", None])
def test_a_snapshot_of_another_version_is_refused_plainly(tmp_path: Path, other: object) -> None:
    (tmp_path / STATE).write_text(json.dumps({"format": other, "components": "as that version has them"}))
    with pytest.raises(SnapshotInvalid, match=f"format {other!r}; this version reads {snapshots.FORMAT}"):
        snapshots.read_state(tmp_path)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotInvalid, match=STATE):
        snapshots.component_digests(tmp_path)
    write(tmp_path, model=STATE_DICT)
    (tmp_path / TENSORS).unlink()
    with pytest.raises(SnapshotInvalid, match=TENSORS):
        snapshots.component_digests(tmp_path)


def test_tensor_that_is_not_in_the_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, model=STATE_DICT)
    text = (tmp_path / STATE).read_text()
    (tmp_path / STATE).write_text(text.replace("model/weight", "model/weights"))
    with pytest.raises(SnapshotInvalid, match="model/weights"):
        snapshots.component_digests(tmp_path)
