"""Which queued job goes to which worker."""

import pytest

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn.v1.worker_pb2 import Device, Worker
from adjourn_control_plane.fleet.placement import Binding, Capacity, capacity, choose
from adjourn_control_plane.store.interface import Allocation, Stored, WorkerName


def machine(*, gpus: int = 0, cpu_slots: int = 0, quarantined: tuple[int, ...] = ()) -> Worker:
    devices = [Device(uuid=f"GPU-{i}", index=i, quarantined=i in quarantined) for i in reversed(range(gpus))]
    return Worker(name="workers/a", devices=devices, cpu_slots=cpu_slots, labels={"zone": "x"})


def busy(*jobs: tuple[tuple[str, ...], bool]) -> Allocation:
    """Jobs by the devices they use and whether they have released them."""
    records = [
        JobRecord(job=Job(spec=JobSpec(gpu_count=len(devices))), device_uuids=devices, released=released)
        for devices, released in jobs
    ]
    return Allocation(
        worker=WorkerName("workers/a"), version=1, jobs=[Stored(record=record, version=1) for record in records]
    )


def spare(name: str, *, gpus: int = 0, cpu_slots: int = 0, labels: tuple[tuple[str, str], ...] = ()) -> Capacity:
    return Capacity(worker=name, labels=labels, gpus=tuple(f"{name}-{i}" for i in range(gpus)), cpu_slots=cpu_slots)


def test_what_is_taken_or_quarantined_is_not_offered() -> None:
    worker = machine(gpus=4, cpu_slots=2, quarantined=(2,))
    assert capacity(worker, busy()).gpus == ("GPU-0", "GPU-1", "GPU-3")
    assert capacity(worker, busy((("GPU-0",), False))).gpus == ("GPU-1", "GPU-3")
    assert capacity(worker, busy(((), False))).cpu_slots == 1
    assert capacity(worker, busy((("GPU-0",), False))).cpu_slots == 2, "a GPU job takes no CPU slot"


def test_what_is_released_is_offered_though_the_checkpoint_is_still_on_its_way() -> None:
    worker = machine(gpus=1, cpu_slots=1)
    assert capacity(worker, busy((("GPU-0",), True))).gpus == ("GPU-0",)
    assert capacity(worker, busy(((), True))).cpu_slots == 1


def test_a_worker_that_shrank_offers_nothing() -> None:
    assert capacity(machine(cpu_slots=1), busy(((), False), ((), False))).cpu_slots == 0


def test_a_cpu_job_needs_a_slot_and_a_gpu_job_its_gpus() -> None:
    capacities = [spare("workers/a", gpus=2)]
    assert choose(JobSpec(), capacities) is None
    assert choose(JobSpec(gpu_count=3), capacities) is None
    assert choose(JobSpec(gpu_count=2), capacities) == Binding(
        worker="workers/a", device_uuids=("workers/a-0", "workers/a-1")
    )
    assert choose(JobSpec(), [spare("workers/b", cpu_slots=1)]) == Binding(worker="workers/b", device_uuids=())


def test_jobs_spread_and_ties_go_by_name() -> None:
    assert choose(JobSpec(), [spare("workers/a", cpu_slots=1), spare("workers/b", cpu_slots=2)]) == Binding(
        worker="workers/b", device_uuids=()
    )
    for order in (["workers/a", "workers/b"], ["workers/b", "workers/a"]):
        place = choose(JobSpec(gpu_count=1), [spare(name, gpus=2) for name in order])
        assert place == Binding(worker="workers/a", device_uuids=("workers/a-0",))


@pytest.mark.parametrize(
    ("selector", "fits"),
    [({}, True), ({"zone": "x"}, True), ({"zone": "y"}, False), ({"zone": "x", "disk": "fast"}, False)],
)
def test_a_worker_must_carry_every_label(selector: dict[str, str], fits: bool) -> None:
    place = choose(JobSpec(worker_selector=selector), [spare("workers/a", cpu_slots=1, labels=(("zone", "x"),))])
    assert (place is not None) == fits


def test_nobody_offers_nothing() -> None:
    assert choose(JobSpec(), []) is None
