"""The scheduler's view of the queue."""

from datetime import UTC, datetime, timedelta

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Condition, Failure, Job, JobSpec
from adjourn_control_plane.fleet.placement import Needs
from adjourn_control_plane.fleet.queue import Queue
from adjourn_control_plane.store.interface import JobName

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B, C = JobName("jobs/a"), JobName("jobs/b"), JobName("jobs/c")
CPU, GPU = Needs(), Needs(gpu_count=1)


def record(job: JobName, number: int, *, gpus: int = 0, reason: str = "", failed: bool = False) -> JobRecord:
    made = JobRecord(job=Job(name=job, spec=JobSpec(gpu_count=gpus)), number=number)
    made.job.state_time.FromDatetime(NOW)
    if reason:
        made.job.conditions.add(type=Condition.UNPLACED, reason=reason)
    if failed:
        made.job.restart_count = 1
        made.job.failure.CopyFrom(Failure(reason="X"))
        made.job.failure.time.FromDatetime(NOW)
    return made


def test_the_oldest_of_each_class_is_known_whatever_the_order_of_arrival() -> None:
    queue = Queue()
    for job, number, gpus in ((B, 2, 0), (A, 1, 0), (C, 3, 1)):
        assert queue.put(job, record(job, number, gpus=gpus), NOW, 0)
    assert (queue.oldest(CPU), queue.oldest(GPU)) == ((1, A), (3, C))
    queue.remove(A)
    assert queue.oldest(CPU) == (2, B)
    queue.remove(B)
    queue.remove(B)
    assert queue.oldest(CPU) is None
    assert list(queue.classes) == [GPU]


def test_a_job_with_a_new_record_changes_its_class_or_nothing() -> None:
    queue = Queue()
    queue.put(A, record(A, 1), NOW, 0)
    queue.release(0)
    assert not queue.put(A, record(A, 1, reason="NO_CAPACITY"), NOW, 0), "only its condition is new"
    assert queue.oldest(CPU) == (1, A)
    assert queue.put(A, record(A, 1, gpus=1), NOW, 0)
    queue.release(0)
    assert (queue.oldest(CPU), queue.oldest(GPU)) == (None, (1, A))
    queue.remove(A)
    assert queue.put(A, record(A, 9, gpus=1), NOW, 0), "another job of the name"
    queue.release(0)
    assert queue.oldest(GPU) == (9, A)


def test_a_job_waits_for_its_next_attempt() -> None:
    queue = Queue()
    queue.put(A, record(A, 1, failed=True), NOW, 0)
    queue.release(0)
    assert queue.oldest(CPU) is None
    assert queue.next_ready() == 1
    assert list(queue.delayed_unexplained(5)) == [(NOW + timedelta(seconds=1), A)]
    queue.explained(A, "RESTART_DELAY")
    assert list(queue.delayed_unexplained(5)) == []
    queue.release(2)
    assert queue.oldest(CPU) == (1, A)
    assert queue.next_ready() is None
    assert queue.unexplained(CPU, "NO_CAPACITY", 5) == [A], "the delay is over; something else holds it up"


def test_no_wait_is_longer_because_a_clock_was_set_back() -> None:
    queue = Queue()
    queue.put(A, record(A, 1, failed=True), NOW - timedelta(minutes=10), 100)
    queue.put(B, record(B, 2), NOW - timedelta(minutes=10), 100)
    queue.release(100)
    assert queue.oldest(CPU) == (2, B), "it has nothing to wait for"
    assert queue.next_ready() == 101
    assert list(queue.delayed_unexplained(5)) == [(NOW - timedelta(minutes=10) + timedelta(seconds=1), A)]
    assert not queue.put(A, record(A, 1, failed=True), NOW, 100.5), "it goes on waiting"
    queue.release(101)
    assert queue.oldest(CPU) == (1, A)


def test_conditions_are_to_be_written_where_another_reason_stands() -> None:
    queue = Queue()
    for job, number, reason in ((A, 1, ""), (B, 2, "NO_WORKER"), (C, 3, "NO_CAPACITY")):
        queue.put(job, record(job, number, reason=reason), NOW, 0)
    queue.release(0)
    assert sorted(queue.unexplained(CPU, "NO_CAPACITY", 5)) == [A, B]
    assert len(queue.unexplained(CPU, "NO_CAPACITY", 1)) == 1
    for job in (A, B):
        queue.explained(job, "NO_CAPACITY")
    assert queue.unexplained(CPU, "NO_CAPACITY", 5) == []
    assert sorted(queue.unexplained(CPU, "NO_WORKER", 5)) == [A, B, C]
    assert queue.oldest(CPU) == (1, A)
    assert queue.unexplained(GPU, "NO_WORKER", 5) == []
