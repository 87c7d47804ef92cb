"""Pinned checkpoints, through the API and on both stores' contract."""

import asyncio
from collections.abc import Sequence

import pytest

from adjourn import errors
from adjourn.v1 import checkpoint_service_pb2 as pb
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import retention
from adjourn_control_plane.store.interface import Change, JobName
from tests.harness.control_planes import Replica, refused

JOB = JobName("jobs/j")


async def registers(plane: Replica, *names: str) -> list[str]:
    """Creates the job with these checkpoints, the last one the newest."""
    await plane.create()
    stored = await plane.store.get(JOB)
    assert stored
    made = [Checkpoint(name=f"{JOB}/checkpoints/{name}") for name in names]
    made[-1].retained_for.append(Checkpoint.LATEST)
    stored.record.checkpoint.CopyFrom(made[-1])
    await plane.store.commit(Change(job=JOB, expected=stored.version, record=stored.record, checkpoints=made))
    return [each.name for each in made]


async def kept(plane: Replica) -> dict[str, Sequence[int]]:
    listed = await plane.checkpoints.ListCheckpoints(pb.ListCheckpointsRequest(parent=JOB))
    return {each.name: list(each.retained_for) for each in listed.checkpoints}


async def test_a_pin_is_shown_told_and_taken_back(idle_plane: Replica) -> None:
    old, new = await registers(idle_plane, "1", "2")
    for _ in range(2):  # a repeat changes nothing
        pinned = await idle_plane.checkpoints.PinCheckpoint(pb.PinCheckpointRequest(name=old, reason="for the paper"))
        assert (pinned.name, list(pinned.retained_for)) == (old, [Checkpoint.PINNED])
    await idle_plane.checkpoints.PinCheckpoint(pb.PinCheckpointRequest(name=new))
    assert await kept(idle_plane) == {new: [Checkpoint.LATEST, Checkpoint.PINNED], old: [Checkpoint.PINNED]}
    got = await idle_plane.checkpoints.GetCheckpoint(pb.GetCheckpointRequest(name=old))
    assert list(got.retained_for) == [Checkpoint.PINNED]
    for _ in range(2):
        back = await idle_plane.checkpoints.UnpinCheckpoint(pb.UnpinCheckpointRequest(name=old))
        assert list(back.retained_for) == [Checkpoint.RECENT]
    assert await kept(idle_plane) == {new: [Checkpoint.LATEST, Checkpoint.PINNED], old: [Checkpoint.RECENT]}
    events = await idle_plane.store.events(JOB, after=0, size=99)
    told = [(each.type, each.details["pinned"], each.message) for each in events if "pinned" in each.details]
    assert told == [
        (JobEvent.CHECKPOINT_PINNED, old, "for the paper"),
        (JobEvent.CHECKPOINT_PINNED, new, ""),
        (JobEvent.CHECKPOINT_UNPINNED, old, ""),
    ]


async def test_what_is_not_there_cannot_be_pinned(idle_plane: Replica) -> None:
    await registers(idle_plane, "1")
    for name, kind in (
        (f"{JOB}/checkpoints/9", errors.NotFoundError),
        ("jobs/none/checkpoints/1", errors.NotFoundError),
        ("jobs/j", errors.InvalidRequestError),
    ):
        with refused(kind):
            await idle_plane.checkpoints.PinCheckpoint(pb.PinCheckpointRequest(name=name))
        with refused(kind):
            await idle_plane.checkpoints.UnpinCheckpoint(pb.UnpinCheckpointRequest(name=name))


async def test_pins_of_many_callers_at_once_are_all_kept_up_to_the_limit(
    idle_plane: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PINS", 7)
    names = await registers(idle_plane, *map(str, range(9)))
    pins = (idle_plane.checkpoints.PinCheckpoint(pb.PinCheckpointRequest(name=name)) for name in names[:7])
    await asyncio.gather(*pins)
    assert [name for name, why in (await kept(idle_plane)).items() if Checkpoint.PINNED in why] == names[:7][::-1]
    with refused(errors.TooManyPinsError):
        await idle_plane.checkpoints.PinCheckpoint(pb.PinCheckpointRequest(name=names[7]))
    await idle_plane.checkpoints.UnpinCheckpoint(pb.UnpinCheckpointRequest(name=names[0]))
    await idle_plane.checkpoints.PinCheckpoint(pb.PinCheckpointRequest(name=names[7]))
