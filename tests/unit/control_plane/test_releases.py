"""A worker that is out of reach may still have the process: nothing says that its GPUs are free until it is known."""

import pytest

from adjourn import reasons
from adjourn.v1.agent_service_pb2 import AssignmentStatus
from adjourn.v1.job_pb2 import Condition, Pause
from adjourn.v1.worker_pb2 import Device, Worker
from adjourn_control_plane.fleet import reconcile
from adjourn_control_plane.fleet.placement import capacity
from adjourn_control_plane.job import releases
from adjourn_control_plane.job.events import Adopted, ConditionChanged, PausePhase, ReleaseConfirmed
from adjourn_control_plane.store.interface import Allocation, JobName, Unconfirmed, WorkerName
from tests.harness.job_life import A, B, Life, checkpoint_name, status


def attempts(life: Life) -> list[int]:
    return [entry.token.attempt for entry in life.record.unconfirmed_releases]


def condition(life: Life) -> Condition | None:
    return next((each for each in life.job.conditions if each.type == Condition.RELEASE_UNCONFIRMED), None)


def resting() -> Life:
    """PAUSED because its worker was lost on the way to the boundary."""
    life = Life(gpu_count=1).placed(A, "gpu").acknowledged().began().trained(1).pause().goes_out_of_reach()
    assert life.state == "PAUSED"
    return life


def test_a_pause_whose_worker_is_out_of_reach_says_that_the_release_is_not_known() -> None:
    life = resting()
    pause = life.job.pause
    assert (pause.cause, pause.checkpoint) == (Pause.WORKER_LOST, checkpoint_name(1))
    assert not pause.HasField("release_time")
    said = condition(life)
    assert said is not None
    assert said.reason == reasons.WORKER_OUT_OF_REACH
    assert "attempt 1 on workers/a (instance i)" in said.message
    (entry,) = life.record.unconfirmed_releases
    assert (entry.worker, entry.instance, entry.token, list(entry.device_uuids)) == (A, "i", life.record.token, ["gpu"])
    assert entry.time == pause.pause_time


def test_the_release_time_is_when_it_was_confirmed() -> None:
    life = resting().is_gone()
    assert life.job.pause.release_time.ToDatetime(life.now.tzinfo) == life.now
    assert condition(life) is None
    assert life.history[-1] == "CONDITION_ENDED"
    assert life.is_gone().last is None, "once"


def test_the_workers_own_time_is_kept_if_it_tells_one() -> None:
    left = Pause()
    left.release_time.FromSeconds(7)
    life = resting().tell(PausePhase(actor=A, pause=left))
    assert (life.job.pause.release_time.seconds, condition(life)) == (7, None)
    life = resting().is_gone().tell(PausePhase(actor=A, pause=left))
    assert life.job.pause.release_time.seconds == 7


def test_a_process_that_had_left_before_its_worker_was_lost_is_not_in_doubt() -> None:
    life = Life().running(1).pause().released().goes_out_of_reach()
    assert (life.state, attempts(life), condition(life)) == ("PAUSED", [], None)
    assert life.job.pause.HasField("release_time")


def test_a_worker_in_reach_that_does_not_know_the_attempt_leaves_no_doubt() -> None:
    assert attempts(Life().running(1).is_lost()) == []


def test_it_is_said_whatever_becomes_of_the_job() -> None:
    queued = Life().running(1).goes_out_of_reach()
    assert queued.state == "QUEUED"
    elsewhere = Life().running(1).goes_out_of_reach().placed(B).acknowledged().began()
    again = Life().running(1).goes_out_of_reach().placed(B).acknowledged().began().pause().trained(2).released().rests()
    assert again.job.pause.HasField("release_time"), "that of the attempt that was paused"
    for life, state in (
        (elsewhere, "RUNNING"),
        (again, "PAUSED"),
        (Life().running(1).goes_out_of_reach().cancel(), "CANCELLED"),
        (Life().running(1).cancel().goes_out_of_reach(), "CANCELLED"),
        (Life(max_restarts=0).running(1).goes_out_of_reach(), "FAILED"),
        (Life(total_epochs=2).running(1).goes_out_of_reach().placed(B).began().trained(2).finishes(), "SUCCEEDED"),
    ):
        assert (life.state, attempts(life)) == (state, [1])
        assert condition(life) is not None
        life.is_gone(1)
        assert (life.state, attempts(life), condition(life)) == (state, [], None)


def test_a_job_that_is_paused_in_the_queue_does_not_say_that_nothing_runs() -> None:
    life = Life().running(1).goes_out_of_reach().pause()
    assert life.state == "PAUSED"
    assert life.last is not None
    assert life.last.events[-1].message == "nothing is known to run"
    assert condition(life) is not None
    assert not life.job.pause.HasField("release_time")
    back = Adopted(actor=A, token=life.record.token, worker=A, device_uuids=(), generation=1, released=False)
    life.tell(back)
    assert (life.state, condition(life)) == ("PAUSING", None)
    life.trained(2).released().rests()
    assert life.job.pause.HasField("release_time")


def test_an_operator_who_was_wrong_leaves_no_release_time_on_a_process_that_lives() -> None:
    life = resting().is_gone().at(160)
    assert life.job.pause.HasField("release_time")
    token = life.record.token
    life.tell(Adopted(actor=A, token=token, worker=A, device_uuids=("gpu",), generation=9, released=False))
    assert life.state == "PAUSING"
    assert not life.job.pause.HasField("release_time")
    assert not life.record.HasField("pause_release_time")


def test_several_attempts_may_be_out_of_reach_and_each_is_told_of() -> None:
    life = Life().running(1).goes_out_of_reach().placed(B).acknowledged().began().pause().goes_out_of_reach("k")
    assert attempts(life) == [1, 2]
    said = condition(life)
    assert said is not None
    assert "attempt 1 on workers/a (instance i); attempt 2 on workers/b (instance k)" in said.message
    life.is_gone(1)
    assert not life.job.pause.HasField("release_time"), "it left behind the other one"
    assert life.last is not None
    assert "attempt 1" not in life.last.events[-1].message
    life.is_gone(2)
    assert life.job.pause.HasField("release_time")
    assert condition(life) is None


def test_a_pause_waits_for_every_attempt_on_its_worker() -> None:
    life = Life(max_restarts=9).running(1).goes_out_of_reach().placed(A).acknowledged().began().pause()
    life.goes_out_of_reach()
    assert life.is_gone(2).job.pause.HasField("release_time") is False
    assert life.is_gone(1).job.pause.HasField("release_time")


def test_a_pause_does_not_wait_for_an_attempt_on_another_instance_of_its_worker() -> None:
    """The successor of a machine that is out of reach is itself lost on the way to the boundary."""
    life = Life(max_restarts=9).running(1).goes_out_of_reach("i").placed(A).acknowledged().began().pause()
    life.goes_out_of_reach("k")
    assert life.is_gone(1).job.pause.HasField("release_time") is False, "that of the first says nothing of the second"
    assert life.is_gone(2).job.pause.HasField("release_time")
    life = Life(max_restarts=9).running(1).goes_out_of_reach("i").placed(A).acknowledged().began().pause()
    life.goes_out_of_reach("k")
    assert life.is_gone(2).job.pause.HasField("release_time"), "that of the first is another machine's"
    assert attempts(life) == [1]


def test_what_the_successor_of_a_machine_tells_releases_no_pause_of_the_first() -> None:
    life = resting().resume().placed(A, "gpu-of-k").acknowledged().began().pause().trained(2).released().rests()
    assert life.job.pause.HasField("release_time"), "that of the successor's own attempt"
    assert not life.job.past_pauses[0].HasField("release_time")
    life.resume().placed(A, "gpu-of-k").acknowledged().began().pause().goes_out_of_reach("k")
    life.is_gone(3)
    assert life.job.pause.HasField("release_time")
    assert not life.job.past_pauses[0].HasField("release_time"), "the first one may still train"
    life.is_gone(1)
    assert life.job.past_pauses[0].HasField("release_time")


def test_a_job_remembers_the_newest_attempts_only() -> None:
    life = Life(max_restarts=1000)
    for _ in range(releases.KEPT + 3):
        life.running().goes_out_of_reach()
    assert attempts(life) == list(range(4, releases.KEPT + 4))


def test_time_out_of_reach_is_not_counted_as_saved() -> None:
    life = resting().resume().placed(B).acknowledged().began()
    assert life.job.pause.HasField("resume_time")
    assert life.job.pause.saved_gpu_seconds == 0
    life.is_gone(1)
    assert life.job.pause.saved_gpu_seconds == 0, "it was not free before the job went on"

    life = resting().resume().placed(B).acknowledged().is_gone(1)
    freed = life.now
    life.at(100).began()
    assert life.job.pause.saved_gpu_seconds == (life.now - freed).total_seconds()


def test_a_worker_cannot_end_what_is_not_its_to_tell() -> None:
    life = Life().running(1).goes_out_of_reach().placed(B).acknowledged()
    for kind in (Condition.RELEASE_UNCONFIRMED, Condition.UNPLACED):
        life.tell(ConditionChanged(actor=B, condition=Condition(type=kind), ended=True))
    assert condition(life) is not None
    life.fails()
    assert condition(life) is not None


# what a worker says


def left(life: Life) -> list[Unconfirmed]:
    return [Unconfirmed(job=JobName(life.job.name), entry=entry) for entry in life.record.unconfirmed_releases]


def gone(life: Life, *reported: AssignmentStatus, worker: str = A, instance: str = "i") -> list[int]:
    events = reconcile.confirmed_releases(worker, instance, left(life), reported)
    assert all(isinstance(event, ReleaseConfirmed) for _, event in events)
    return [event.token.attempt for _, event in events if isinstance(event, ReleaseConfirmed)]


def test_a_worker_confirms_what_it_does_not_hold_alive() -> None:
    life = Life().running(1).goes_out_of_reach().placed(B)
    assert gone(life) == [1]
    old = status(life.record, attempt=1)
    assert gone(life, old) == []
    for phase in reconcile.OVER | {AssignmentStatus.PERSISTING}:
        assert gone(life, status(life.record, phase, attempt=1)) == [1]
    waits = status(life.record, AssignmentStatus.PERSISTING, attempt=1, devices=("gpu",))
    assert gone(life, waits) == [], "its GPUs are not free yet"


def test_what_may_not_have_arrived_yet_is_not_gone() -> None:
    life = Life().placed(A).goes_out_of_reach()
    attempt = (life.job.name, reconcile.token_key(life.record.token))
    assert reconcile.confirmed_releases(A, "i", left(life), [], on_the_way={attempt}) == []
    over = status(life.record, AssignmentStatus.STOPPED)
    assert len(reconcile.confirmed_releases(A, "i", left(life), [over], on_the_way={attempt})) == 1


@pytest.mark.parametrize(("worker", "instance"), [(B, "i"), (A, "other"), (A, "")])
def test_nobody_else_confirms(worker: str, instance: str) -> None:
    life = Life().running(1).goes_out_of_reach()
    assert gone(life, worker=worker, instance=instance) == []


def test_an_agent_that_was_too_old_to_tell_its_instance_is_known_by_its_name() -> None:
    life = Life().running(1).goes_out_of_reach("")
    assert gone(life, instance="new") == [1]


def test_the_gpus_of_an_attempt_that_may_live_are_not_given_away() -> None:
    life = Life(gpu_count=1).placed(A, "gpu-0").acknowledged().goes_out_of_reach()
    worker = Worker(name=A, instance="i", devices=[Device(uuid=f"gpu-{i}", index=i) for i in range(2)], cpu_slots=1)
    idle = Allocation(worker=WorkerName(A), version=1)
    assert [uuid for uuid, _ in capacity(worker, idle, left(life)).gpus] == ["gpu-1"]
    assert capacity(worker, idle, left(life)).cpu_slots == 1
    on_cpu = Life().running().goes_out_of_reach()
    assert capacity(worker, idle, left(on_cpu)).cpu_slots == 0


def test_the_successor_of_a_machine_is_offered_its_own_gpus_and_slots_and_none_that_the_first_may_use() -> None:
    life = Life(gpu_count=1).placed(A, "gpu-0").acknowledged().goes_out_of_reach()
    on_cpu = Life().running().goes_out_of_reach()
    idle = Allocation(worker=WorkerName(A), version=1)
    same_node = Worker(name=A, instance="k", devices=[Device(uuid=f"gpu-{i}", index=i) for i in range(2)], cpu_slots=1)
    assert [uuid for uuid, _ in capacity(same_node, idle, left(life)).gpus] == ["gpu-1"]
    assert capacity(same_node, idle, left(on_cpu)).cpu_slots == 1, "slots are no hardware"
    elsewhere = Worker(name=A, instance="k", devices=[Device(uuid="other-0"), Device(uuid="other-1")])
    assert len(capacity(elsewhere, idle, left(life)).gpus) == 2
    life.is_gone()
    assert len(capacity(same_node, idle, left(life)).gpus) == 2
