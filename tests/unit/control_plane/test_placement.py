"""Which queued job goes to which worker, and why it goes to none."""

import pytest

from adjourn import reasons
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Condition, Job, JobSpec
from adjourn.v1.worker_pb2 import Device, Worker
from adjourn_control_plane.fleet.placement import Binding, Home, Needs, capacity, choose, home, match, needs
from adjourn_control_plane.store.interface import Allocation, Stored, WorkerName

A, B, C = "workers/a", "workers/b", "workers/c"
CPU = (("cpu", "Xeon"), ("device", "cpu"), ("torch", "2.13.0"))
GPU = (("device", "cuda"), ("gpus", "H100"), ("torch", "2.13.0"))


def machine(
    name: str = A,
    *,
    gpus: int = 0,
    cpu_slots: int = 0,
    quarantined: tuple[int, ...] = (),
    models: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> Worker:
    count = len(models) or gpus
    devices = [
        Device(uuid=f"{name}-{i}", index=i, quarantined=i in quarantined, model=models[i] if models else "")
        for i in reversed(range(count))
    ]
    return Worker(name=name, devices=devices, cpu_slots=cpu_slots, labels={"zone": "x"}, environment=environment)


def busy(*jobs: tuple[tuple[str, ...], bool]) -> Allocation:
    """Jobs by the devices they use and whether they have released them."""
    records = [
        JobRecord(job=Job(spec=JobSpec(gpu_count=len(devices))), device_uuids=devices, released=released)
        for devices, released in jobs
    ]
    return Allocation(worker=WorkerName(A), version=1, jobs=[Stored(record=record, version=1) for record in records])


def place(wanted: Needs, *workers: Worker) -> Binding | None:
    """Chooses among workers that hold nothing."""
    free = {worker.name: capacity(worker, busy()) for worker in workers}
    return choose(wanted, match(wanted, workers), {name: each for name, each in free.items() if each.free})


def uuids(worker: Worker, allocation: Allocation) -> list[str]:
    return [uuid for uuid, _ in capacity(worker, allocation).gpus]


def test_what_is_taken_or_quarantined_is_not_offered() -> None:
    worker = machine(gpus=4, cpu_slots=2, quarantined=(2,))
    assert uuids(worker, busy()) == [f"{A}-0", f"{A}-1", f"{A}-3"]
    assert uuids(worker, busy(((f"{A}-0",), False))) == [f"{A}-1", f"{A}-3"]
    assert capacity(worker, busy(((), False))).cpu_slots == 1
    assert capacity(worker, busy(((f"{A}-0",), False))).cpu_slots == 2, "a GPU job takes no CPU slot"


def test_what_is_released_is_offered_though_the_checkpoint_is_still_on_its_way() -> None:
    worker = machine(gpus=1, cpu_slots=1)
    assert uuids(worker, busy(((f"{A}-0",), True))) == [f"{A}-0"]
    assert capacity(worker, busy(((), True))).cpu_slots == 1


def test_a_worker_that_shrank_offers_nothing() -> None:
    shrunk = capacity(machine(cpu_slots=1), busy(((), False), ((), False)))
    assert shrunk.cpu_slots == 0
    assert not shrunk.free


def test_a_cpu_job_needs_a_slot_and_a_gpu_job_its_gpus() -> None:
    assert place(Needs(), machine(gpus=2)) is None
    assert place(Needs(gpu_count=3), machine(gpus=2)) is None
    assert place(Needs(gpu_count=2), machine(gpus=2)) == Binding(worker=A, device_uuids=(f"{A}-0", f"{A}-1"))
    assert place(Needs(), machine(B, cpu_slots=1)) == Binding(worker=B, device_uuids=())


def test_jobs_without_a_gpu_spread_and_ties_go_by_name() -> None:
    assert place(Needs(), machine(A, cpu_slots=1), machine(B, cpu_slots=2)) == Binding(worker=B, device_uuids=())
    for order in ((A, B), (B, A)):
        assert place(Needs(gpu_count=1), *(machine(name, gpus=2) for name in order)) == Binding(
            worker=A, device_uuids=(f"{A}-0",)
        )


def test_small_gpu_jobs_leave_whole_machines_to_large_ones() -> None:
    workers = machine(A, gpus=8), machine(B, gpus=8)
    left = {A: capacity(workers[0], busy()), B: capacity(workers[1], busy(*[((f"{B}-{i}",), False) for i in range(5)]))}
    for wanted, worker in ((1, B), (3, B), (4, A), (8, A)):
        binding = choose(Needs(gpu_count=wanted), match(Needs(gpu_count=wanted), workers), left)
        assert binding
        assert binding.worker == worker


@pytest.mark.parametrize(
    ("selector", "fits"),
    [((), True), ((("zone", "x"),), True), ((("zone", "y"),), False), ((("disk", "fast"), ("zone", "x")), False)],
)
def test_a_worker_must_carry_every_label(selector: tuple[tuple[str, str], ...], fits: bool) -> None:
    assert (place(Needs(selector=selector), machine(cpu_slots=1)) is not None) == fits


def test_a_checkpoint_goes_on_where_its_environment_is() -> None:
    other = machine(A, cpu_slots=9, environment={"cpu": "Epyc", "torch": "2.13.0"})
    equal = machine(B, cpu_slots=1, environment={"cpu": "Xeon", "torch": "2.13.0"})
    assert place(Needs(environment=CPU), other, equal) == Binding(worker=B, device_uuids=())
    assert place(Needs(environment=CPU), other) is None
    assert place(Needs(), other, equal) == Binding(worker=A, device_uuids=()), "from scratch, anywhere"


def test_a_job_that_may_go_anywhere_still_prefers_an_equal_environment() -> None:
    other = machine(A, cpu_slots=9, environment={"cpu": "Epyc", "torch": "2.13.0"})
    equal = machine(B, cpu_slots=1, environment={"cpu": "Xeon", "torch": "2.13.0"})
    wanted = Needs(environment=CPU, allow_inexact=True)
    assert place(wanted, other, equal) == Binding(worker=B, device_uuids=())
    assert place(wanted, other) == Binding(worker=A, device_uuids=())


def test_a_checkpoint_goes_on_with_gpus_of_its_model() -> None:
    mixed = machine(A, models=("A100", "H100", "A100", "H100"), environment={"torch": "2.13.0"})
    wanted = Needs(gpu_count=2, environment=GPU)
    assert place(wanted, mixed) == Binding(worker=A, device_uuids=(f"{A}-1", f"{A}-3"))
    one_is_taken = {A: capacity(mixed, busy(((f"{A}-3",), False)))}
    assert choose(wanted, match(wanted, [mixed]), one_is_taken) is None, "two are free, of another model"


def reason(wanted: Needs, *workers: Worker) -> tuple[str, str]:
    found = match(wanted, workers)
    return found.reason, found.message


def test_the_reason_is_the_first_requirement_that_no_worker_meets() -> None:
    xeon = machine(cpu_slots=1, environment={"cpu": "Xeon", "torch": "2.12.0"})
    assert reason(Needs()) == (reasons.NO_WORKER, "no worker is connected")
    assert reason(Needs(selector=(("disk", "fast"), ("zone", "y"))), xeon) == (
        reasons.NO_MATCHING_WORKER,
        "no worker has the labels disk=fast, zone=y",
    )
    assert reason(Needs(gpu_count=8), machine(A, gpus=2), machine(B, gpus=4, quarantined=(0,))) == (
        reasons.NO_MATCHING_WORKER,
        "no matching worker has 8 GPUs; the largest has 3",
    )
    assert reason(Needs(), machine(gpus=2)) == (reasons.NO_MATCHING_WORKER, "no matching worker has a CPU slot")
    assert reason(Needs(environment=CPU), xeon, machine(B, cpu_slots=1)) == (
        reasons.NO_EQUAL_ENVIRONMENT,
        "no worker has the environment of its checkpoint; on workers/a, which is nearest: torch was 2.13.0, is 2.12.0",
    )
    assert reason(Needs(gpu_count=1, environment=GPU), machine(gpus=1, environment={"torch": "2.13.0"}))[1].endswith(
        "gpus was H100, is unknown"
    )
    assert reason(Needs(environment=CPU, allow_inexact=True), xeon)[0] == reasons.NO_CAPACITY
    assert reason(Needs(), xeon) == (
        reasons.NO_CAPACITY,
        "every worker that could run it is busy, takes no new jobs, or may have a lost attempt",
    )


def test_a_job_with_requirements_goes_where_they_are_installed_if_there_is_such_a_worker() -> None:
    plain, able = machine(A, cpu_slots=2), machine(B, cpu_slots=1)
    wanted = Needs(requirements=True)
    assert place(wanted, plain) == Binding(worker=A, device_uuids=()), "it may have them"
    able.installs_requirements = True
    assert place(wanted, plain, able) == Binding(worker=B, device_uuids=())
    able.cpu_slots = 0
    assert place(wanted, plain, able) == Binding(worker=A, device_uuids=()), "that one has no place for any job"
    assert needs(JobRecord(job=Job(spec=JobSpec(requirements=["einops"])))) == wanted


def test_what_meets_a_jobs_requirements_is_not_looked_for_on_a_worker() -> None:
    environment = (("packages", "einops==0.8, timm==1.0"), ("library.timm", "1.0"), ("torch", "2.13.0"))
    here = machine(cpu_slots=1, environment={"torch": "2.13.0", "library.timm": "0.9"})
    assert place(Needs(environment=environment), here) is not None
    assert place(Needs(environment=environment[1:]), here) is None


def test_needs_come_from_the_spec_and_the_newest_checkpoint() -> None:
    record = JobRecord(job=Job(spec=JobSpec(gpu_count=2, worker_selector={"b": "2", "a": "1"})), allow_inexact=True)
    record.checkpoint.environment.update(torch="2.13.0")
    assert needs(record) == Needs(
        gpu_count=2, selector=(("a", "1"), ("b", "2")), environment=(("torch", "2.13.0"),), allow_inexact=True
    )


def test_a_full_disk_on_every_worker_that_could_run_it_is_told() -> None:
    full, other = machine(A, cpu_slots=1), machine(B, cpu_slots=1)
    full.conditions.add(type=Condition.DISK_FULL)
    found = match(Needs(), [full, other])
    assert (found.reason, found.equal) == (reasons.NO_CAPACITY, frozenset({A, B}))
    other.conditions.add(type=Condition.DISK_FULL)
    found = match(Needs(), [full, other])
    assert (found.reason, found.message) == (
        reasons.NO_SPACE,
        f"no worker that could run it has room on its disk: {A}, {B}",
    )


AT_B = Home(worker=B, instance="b1")


def returns(wanted: Needs, *workers: tuple[Worker, Allocation], to: Home | None = AT_B) -> str:
    """Returns where a job goes that left off at `to`."""
    free = {worker.name: capacity(worker, taken) for worker, taken in workers}
    binding = choose(
        wanted,
        match(wanted, [worker for worker, _ in workers]),
        {name: each for name, each in free.items() if each.free},
        to,
    )
    return binding.worker if binding else ""


def named(worker: Worker, instance: str) -> Worker:
    worker.instance = instance
    return worker


def taken(worker: str, count: int) -> Allocation:
    return busy(*[((f"{worker}-{number}",), False) for number in range(count)])


def test_a_job_returns_to_where_it_left_off_if_there_is_room() -> None:
    larger, left_off = machine(A, cpu_slots=9), named(machine(B, cpu_slots=2), "b1")
    assert returns(Needs(), (larger, busy()), (left_off, busy()), to=None) == A
    assert returns(Needs(), (larger, busy()), (left_off, busy())) == B
    assert returns(Needs(), (larger, busy()), (left_off, busy(((), False), ((), False)))) == A, "no slot is free there"


def test_a_worker_of_another_instance_is_not_where_it_left_off() -> None:
    successor = named(machine(B, cpu_slots=2), "b2")
    assert returns(Needs(), (machine(A, cpu_slots=9), busy()), (successor, busy())) == A


def test_an_equal_environment_comes_before_where_it_left_off() -> None:
    equal = machine(A, cpu_slots=1, environment={"cpu": "Xeon", "torch": "2.13.0"})
    upgraded = named(machine(B, cpu_slots=9, environment={"cpu": "Xeon", "torch": "2.14.0"}), "b1")
    wanted = Needs(environment=CPU, allow_inexact=True)
    assert returns(wanted, (equal, busy()), (upgraded, busy())) == A
    assert returns(wanted, (upgraded, busy())) == B


@pytest.mark.parametrize(
    ("wanted", "free_at_a", "free_at_b", "where"),
    [
        (2, 2, 5, B),
        (2, 2, 8, A),  # which leaves B whole
        (2, 8, 8, B),  # one of them has to be broken up
        (8, 8, 8, B),
        (2, 2, 1, A),
        (1, 0, 8, B),
    ],
)
def test_a_gpu_job_returns_unless_that_breaks_up_a_machine_for_nothing(
    wanted: int, free_at_a: int, free_at_b: int, where: str
) -> None:
    a, b = machine(A, gpus=8), named(machine(B, gpus=8), "b1")
    assert returns(Needs(gpu_count=wanted), (a, taken(A, 8 - free_at_a)), (b, taken(B, 8 - free_at_b))) == where


def test_a_quarantined_gpu_counts_for_no_machine() -> None:
    a, b = machine(A, gpus=8), named(machine(B, gpus=3, quarantined=(2,)), "b1")
    assert returns(Needs(gpu_count=1), (a, taken(A, 7)), (b, busy())) == A, "the two that are left are all of B"
    assert returns(Needs(gpu_count=2), (a, taken(A, 6)), (b, busy())) == B


def left_off(*, checkpoint: int = 3, instance: str = "b1", failed: int = 0) -> JobRecord:
    record = JobRecord(last_worker=B, last_instance=instance)
    record.token.attempt = 3
    if checkpoint:
        record.checkpoint.name, record.checkpoint.attempt = f"jobs/j/checkpoints/{checkpoint}-0-1", checkpoint
    if failed:
        record.job.failure.attempt = failed
    return record


def test_a_job_left_off_where_its_last_attempt_made_its_checkpoint_and_did_not_fail() -> None:
    assert home(left_off()) == AT_B
    assert home(left_off(failed=2)) == AT_B
    assert home(left_off(failed=3)) is None
    assert home(left_off(checkpoint=2)) is None
    assert home(left_off(checkpoint=0)) is None
    assert home(left_off(instance="")) is None
    assert home(JobRecord()) is None
