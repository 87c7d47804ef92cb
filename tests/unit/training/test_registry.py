"""The tracked state of a run, put back from a snapshot."""

from pathlib import Path

import pytest
import torch

from adjourn import snapshots
from adjourn.training.errors import RestoreDiverged
from adjourn.training.snapshot.reader import SnapshotReader
from adjourn.training.snapshot.round_trip import RoundTrip
from adjourn.training.snapshot.writer import Slot, SnapshotWriter, dumped
from adjourn.training.state.registry import State
from adjourn.v1.job_pb2 import Progress


def saved(directory: Path, state: State) -> SnapshotReader:
    trees, blobs = state.encode()
    document = {"format": snapshots.FORMAT, "components": trees, "environment": {}, "remarks": [], "progress": {}}
    Slot(directory).write(dumped(document).encode(), blobs)
    return SnapshotReader(directory, torch.device("cpu"))


def test_what_was_changed_since_the_restore_is_put_back_and_compared(tmp_path: Path) -> None:
    values, other = {"a": torch.arange(3.0)}, [1]
    before = State(dict, None)
    before.add({"values": values, "other": other})
    reader = saved(tmp_path / "slot", before)
    expected = before.digests()

    after = State(dict, reader)
    again, later = {"a": torch.zeros(3)}, [0]
    after.add({"values": again, "other": later})
    after.complete()
    after.compare(expected)
    again["a"] += torch.rand(3)
    later.append(2)
    with pytest.raises(RestoreDiverged, match=r"other, random\.torch, values"):
        after.compare(expected)
    after.compare(expected, lambda name: name == "numerics")
    after.put_back()
    after.compare(expected)
    assert again["a"].tolist() == [0, 1, 2]
    assert later == [1]
    later.append(2)
    after.restored()
    after.put_back()
    assert later == [1, 2]


def test_what_is_remembered_of_earlier_snapshots_has_no_part_in_the_last(tmp_path: Path) -> None:
    values = {"a": torch.arange(3.0), "count": 1}
    state = State(dict, None)
    state.add({"values": values})
    right, _ = state.encode()
    remembered = dict(right["values"])
    right["values"]["count"] = 2  # as a defect of ours might leave it
    assert state.encode()[0]["values"] == right["values"]
    writer = SnapshotWriter([tmp_path], torch.device("cpu"), RoundTrip(dict))
    snapshot = writer.save(state, Progress(), {}, last=True, rehearse=False)
    assert snapshot
    assert snapshots.read_state(Path(snapshot.directory)).components["values"] == remembered
