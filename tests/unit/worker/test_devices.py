import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from adjourn.v1.usage_pb2 import GpuSample
from adjourn.v1.worker_pb2 import Device
from adjourn_worker.host import cgroup
from adjourn_worker.host.gpus import Meter, NoGpus, find_gpus
from adjourn_worker.settings import GpuShare


class NvmlError(Exception):
    pass


class FakeNvml:
    """Two GPUs as NVML tells of them; what is in `broken` raises."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *broken: str) -> None:
        self.broken = set(broken)
        self.processes = [SimpleNamespace(pid=7, usedGpuMemory=100), SimpleNamespace(pid=8, usedGpuMemory=30)]
        answers: dict[str, Callable[..., Any]] = {
            "Init": lambda: None,
            "SystemGetDriverVersion": lambda: "580.95.05",
            "DeviceGetCount": lambda: 2,
            "DeviceGetHandleByIndex": lambda index: index,
            "DeviceGetUUID": lambda handle: f"GPU-{handle}",
            "DeviceGetName": lambda _: "H200",
            "DeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=1000, used=200 + handle),
            "DeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=0),
            "DeviceGetTemperature": lambda *_: 41,
            "DeviceGetPowerUsage": lambda _: 70_500,
            "DeviceGetComputeRunningProcesses": lambda _: self.processes,
        }
        for name, answer in answers.items():
            setattr(self, f"nvml{name}", self.guarded(name, answer))

    def guarded(self, name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*arguments: Any) -> Any:
            if name in self.broken:
                raise NvmlError(name)
            return answer(*arguments)

        return ask


def test_without_a_driver_there_are_no_gpus() -> None:
    gpus = find_gpus(GpuShare(), FakeNvml("Init"))
    assert isinstance(gpus, NoGpus)
    assert gpus.inventory() == []
    assert gpus.sample(["GPU-0"], [7]) == []


def test_inventory() -> None:
    assert find_gpus(GpuShare(), FakeNvml()).inventory() == [
        Device(uuid="GPU-0", index=0, model="H200", memory_bytes=1000),
        Device(uuid="GPU-1", index=1, model="H200", memory_bytes=1000),
    ]


def test_the_driver_is_told_of_if_there_is_one() -> None:
    assert find_gpus(GpuShare(), FakeNvml()).environment() == {"driver": "580.95.05"}
    assert find_gpus(GpuShare(), FakeNvml("SystemGetDriverVersion")).environment() == {}
    assert find_gpus(GpuShare(), FakeNvml("Init")).environment() == {}


def test_a_gpu_that_fell_off_the_bus_stays_known_and_is_offered_to_nobody() -> None:
    nvml = FakeNvml()
    gpus = find_gpus(GpuShare(), nvml)
    nvml.broken.add("DeviceGetMemoryInfo")
    assert [device.quarantined for device in gpus.inventory()] == [True, True]


def test_a_sample_has_the_gpus_asked_for() -> None:
    assert find_gpus(GpuShare(), FakeNvml()).sample(["GPU-1"], [7]) == [
        GpuSample(
            uuid="GPU-1",
            index=1,
            utilization_percent=0,
            memory_used_bytes=201,
            memory_total_bytes=1000,
            job_memory_bytes=100,
            temperature_celsius=41,
            power_watts=70.5,
        )
    ]


def test_what_nvml_does_not_tell_is_unset_and_not_0() -> None:
    nvml = FakeNvml()
    gpus = find_gpus(GpuShare(), nvml)
    nvml.broken |= {f"DeviceGet{name}" for name in ("UtilizationRates", "MemoryInfo", "Temperature", "PowerUsage")}
    nvml.broken.add("DeviceGetComputeRunningProcesses")
    assert gpus.sample(["GPU-0"], [7]) == [GpuSample(uuid="GPU-0", index=0)]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ([], 0),  # nobody uses it
        ([(7, 100), (8, 5), (9, 30)], 105),
        ([(70, 100)], None),  # in a container NVML has other numbers for our processes
        ([(7, None)], None),
    ],
)
def test_memory_of_the_job(listed: list[tuple[int, int | None]], expected: int | None) -> None:
    nvml = FakeNvml()
    nvml.processes = [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in listed]
    (sample,) = find_gpus(GpuShare(), nvml).sample(["GPU-0"], [7, 8])
    assert sample.HasField("job_memory_bytes") == (expected is not None)
    assert sample.job_memory_bytes == (expected or 0)


def test_a_process_is_measured_with_what_it_started() -> None:
    meter = Meter(NoGpus())
    first = meter.sample(os.getpid())
    assert not first.HasField("cpu_percent")
    assert not first.HasField("worker_cpu_percent")
    begin = time.process_time()
    while time.process_time() < begin + 0.05:  # the kernel counts in steps of 10 ms
        pass
    second = meter.sample(os.getpid())
    assert second.cpu_percent > 0
    assert second.memory_bytes > 1 << 20
    assert 0 <= second.worker_cpu_percent <= 100
    assert 0 < second.worker_memory_bytes < second.worker_memory_limit_bytes


def test_a_process_that_is_gone_has_no_figures() -> None:
    sample = Meter(NoGpus()).sample(2**22 + 1)
    assert not sample.HasField("memory_bytes")
    assert not sample.HasField("cpu_percent")
    assert sample.HasField("worker_memory_bytes")


def test_the_limits_of_a_container_count(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = iter([cgroup.Cpu(cores=0.5, seconds=10), cgroup.Cpu(cores=0.5, seconds=1e9)])
    monkeypatch.setattr(cgroup, "memory", lambda: cgroup.Memory(limit=1000, used=10))
    monkeypatch.setattr(cgroup, "cpu", lambda: next(limits))
    meter = Meter(NoGpus())
    meter.sample()
    sample = meter.sample()
    assert (sample.worker_memory_bytes, sample.worker_memory_limit_bytes) == (10, 1000)
    assert sample.worker_cpu_percent == 100


def test_workers_side_by_side_share_the_gpus_without_overlap() -> None:
    shares = [find_gpus(GpuShare(part=part, of=2), FakeNvml()).inventory() for part in range(2)]
    assert [[device.uuid for device in share] for share in shares] == [["GPU-0"], ["GPU-1"]]
