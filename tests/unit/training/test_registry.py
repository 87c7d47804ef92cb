"""The tracked state of a run, put back from a snapshot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

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


class Keeping(nn.Linear):
    """Keeps the tensors that it is given."""

    kept: ClassVar[list[torch.Tensor]] = []

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.kept.append(state_dict[f"{prefix}weight"])
        super()._load_from_state_dict(state_dict, prefix, *rest)


LARGE = 1500
"""Width of a layer whose tensors are copied on several threads, or not at all."""


@pytest.mark.parametrize("kind", [nn.Linear, Keeping])
def test_what_is_loaded_lies_nowhere_in_the_memory_of_the_snapshot(
    tmp_path: Path, kind: Callable[..., nn.Module]
) -> None:
    def built() -> dict[str, Any]:
        model = kind(LARGE, LARGE)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(LARGE)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return {"model": model, "optimizer": optimizer}

    before = State(dict, None)
    before.add(built())
    reader = saved(tmp_path / "slot", before)
    expected = before.digests()
    reader.take_digests()
    again = built()
    after = State(dict, reader)
    after.add(again)
    after.complete()
    after.compare(expected)
    with torch.no_grad():
        for blob in after.encode()[1].values():
            blob.data.zero_()
        for tensor in Keeping.kept:
            tensor.zero_()
    with pytest.raises(RestoreDiverged):
        after.compare(expected)
    after.put_back()
    after.compare(expected)
    assert snapshots.component_digests(tmp_path / "slot") == expected


def test_live_components_are_compared_with_bytes_whose_digest_was_taken(tmp_path: Path) -> None:
    values = {"a": torch.arange(3.0), "n": 1}
    before = State(dict, None)
    before.add({"values": values})
    reader = saved(tmp_path / "slot", before)
    expected = before.digests()
    reader.take_digests()
    assert all(reader.content(name) for name in reader.components)
    after = State(dict, reader)
    again = {"a": torch.zeros(3), "n": 0}
    after.add({"values": again})
    after.complete()
    after.compare(expected)
    for name, value in (("a", torch.tensor([0.0, 1.0, 3.0])), ("n", 2)):
        after.put_back()
        again[name] = value
        with pytest.raises(RestoreDiverged, match="values"):
            after.compare(expected)
    after.put_back()
    with pytest.raises(RestoreDiverged, match="values"):
        after.compare({**expected, "values": "0" * 64})


def test_a_file_that_changes_once_its_digests_are_taken_is_not_restored(tmp_path: Path) -> None:
    before = State(dict, None)
    before.add({"values": {"a": torch.arange(3.0)}})
    reader = saved(tmp_path / "slot", before)
    expected = before.digests()
    reader.take_digests()
    assert all(reader.content(name) for name in reader.components)
    with (tmp_path / "slot" / snapshots.TENSORS).open("r+b") as file:
        file.seek(snapshots.read_layout(tmp_path / "slot" / snapshots.TENSORS)["values/a"].begin)
        file.write(b"\1")
    after = State(dict, reader)
    after.add({"values": {"a": torch.zeros(3)}})
    after.complete()
    with pytest.raises(RestoreDiverged, match="values"):
        after.compare(expected)


def test_a_snapshot_whose_digests_cannot_be_taken_is_compared_by_those_of_the_live_state(tmp_path: Path) -> None:
    before = State(dict, None)
    before.add({"values": {"a": torch.arange(3.0)}})
    reader = saved(tmp_path / "slot", before)
    expected = before.digests()
    (tmp_path / "slot" / snapshots.TENSORS).unlink()  # it is mapped
    reader.take_digests()
    assert reader.content("values") is None
    after = State(dict, reader)
    after.add({"values": {"a": torch.zeros(3)}})
    after.complete()
    after.compare(expected)
