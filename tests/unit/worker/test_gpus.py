import os
import subprocess
import time
from collections.abc import Collection
from types import SimpleNamespace

import pytest

from adjourn.v1.usage_pb2 import GpuSample
from adjourn.v1.worker_pb2 import Device
from adjourn_worker.host import cgroup
from adjourn_worker.host.gpus import (
    RELEASE_SLACK_BYTES,
    Gpus,
    Meter,
    NoGpus,
    find_gpus,
    memory_in_use,
    unreleased,
)
from adjourn_worker.settings import GpuShare
from tests.harness.fake_nvml import FakeNvml


def test_without_a_driver_there_are_no_gpus() -> None:
    gpus = find_gpus(GpuShare(), FakeNvml("Init"))
    assert isinstance(gpus, NoGpus)
    assert gpus.devices() == []
    assert gpus.sample(["GPU-0"], [7]) == []


def test_devices() -> None:
    assert find_gpus(GpuShare(), FakeNvml()).devices() == [
        Device(uuid="GPU-0", index=0, model="H200", memory_bytes=1000),
        Device(uuid="GPU-1", index=1, model="H200", memory_bytes=1000),
    ]


def test_the_driver_is_told_of_if_there_is_one() -> None:
    assert find_gpus(GpuShare(), FakeNvml()).environment() == {"driver": "580.95.05"}
    assert find_gpus(GpuShare(), FakeNvml("SystemGetDriverVersion")).environment() == {}
    assert find_gpus(GpuShare(), FakeNvml("Init")).environment() == {}


def quarantined(gpus: Gpus) -> list[bool]:
    gpus.refresh()
    return [device.quarantined for device in gpus.devices()]


def test_a_gpu_that_does_not_answer_is_offered_to_nobody_until_it_does() -> None:
    nvml = FakeNvml()
    gpus = find_gpus(GpuShare(), nvml)
    assert quarantined(gpus) == [False, False]
    nvml.broken.add("DeviceGetMemoryInfo")
    assert quarantined(gpus) == [True, True]
    nvml.broken.clear()
    assert quarantined(gpus) == [False, False]


def test_a_gpu_whose_memory_was_not_released_is_offered_again_once_it_is() -> None:
    nvml = FakeNvml()
    gpus = find_gpus(GpuShare(), nvml)
    gpus.quarantine({"GPU-1": 150, "another machine's": 0})
    assert [device.quarantined for device in gpus.devices()] == [False, True], "at once"
    assert quarantined(gpus) == [False, True]
    nvml.broken.add("DeviceGetMemoryInfo")
    assert quarantined(gpus) == [True, True]
    nvml.broken.clear()
    nvml.used[1] = 150
    assert quarantined(gpus) == [False, False]
    nvml.used[1] = 900  # another job's
    assert quarantined(gpus) == [False, False]


def test_what_a_gpu_told_before_it_was_quarantined_does_not_offer_it_again() -> None:
    nvml = FakeNvml()
    gpus = find_gpus(GpuShare(), nvml)
    ask = nvml.nvmlDeviceGetMemoryInfo  # type: ignore[attr-defined]

    def overtaken(handle: int) -> object:
        answer = ask(handle)
        if handle == 1:
            gpus.quarantine({"GPU-1": answer.used})
        return answer

    nvml.nvmlDeviceGetMemoryInfo = overtaken  # type: ignore[attr-defined]
    assert quarantined(gpus) == [False, True]
    nvml.nvmlDeviceGetMemoryInfo = ask  # type: ignore[attr-defined]
    assert quarantined(gpus) == [False, False]


def used(**figures: int | None) -> list[GpuSample]:
    return [GpuSample(uuid=uuid, memory_used_bytes=figure) for uuid, figure in figures.items()]


def test_gpus_are_released_when_as_much_as_before_is_in_use_or_a_little_more() -> None:
    before = used(a=1 << 30, b=0, c=None)
    slack = RELEASE_SLACK_BYTES
    assert unreleased(before, used(a=(1 << 30) + slack, b=slack, c=1 << 40)) == {}
    assert unreleased(before, used(a=(1 << 30) + slack + 1, b=0, c=0)) == {"a": (1 << 30) + slack}
    assert unreleased(before, used(a=0, b=slack + 1)) == {"b": slack}
    assert unreleased([], used(a=1 << 40)) == {}, "nobody has looked before"


def test_a_gpu_that_does_not_answer_any_more_is_not_released() -> None:
    levels = {"a": 5 + RELEASE_SLACK_BYTES}
    assert unreleased(used(a=5), used(a=None)) == levels
    assert unreleased(used(a=5), []) == levels
    assert unreleased(used(a=None), used(a=None)) == {}, "as with MIG: it has never told"


def test_memory_in_use_is_known_if_it_is_of_all() -> None:
    assert memory_in_use(used(a=3, b=4)) == 7
    assert memory_in_use(used(a=3, b=None)) is None
    assert memory_in_use([]) is None


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
    assert first is not None
    assert not first.HasField("cpu_percent")
    assert not first.HasField("worker_cpu_percent")
    begin = time.process_time()
    while time.process_time() < begin + 0.05:  # the kernel counts in steps of 10 ms
        pass
    second = meter.sample(os.getpid())
    assert second is not None
    assert second.cpu_percent > 0
    assert second.memory_bytes > 1 << 20
    assert 0 <= second.worker_cpu_percent <= 100
    assert 0 < second.worker_memory_bytes < second.worker_memory_limit_bytes
    assert 0 <= second.host_cpu_percent <= 100
    assert 0 < second.host_memory_bytes < second.host_memory_total_bytes


def test_a_process_that_is_gone_has_no_figures() -> None:
    assert Meter(NoGpus()).sample(2**22 + 1) is None


def test_a_process_that_ended_and_was_not_waited_for_has_no_figures() -> None:
    """It has a place in the table of processes still, and CPU time, and no memory."""
    meter = Meter(NoGpus())
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert meter.sample(ended.pid) is None
        assert meter.sample(ended.pid) is None


def test_a_process_that_ends_while_its_gpus_are_asked_has_no_figures() -> None:
    """They would say that it had used none of their memory."""
    with subprocess.Popen(["sleep", "60"]) as training:

        class Leaving(NoGpus):
            def sample(self, uuids: Collection[str], pids: Collection[int]) -> list[GpuSample]:
                assert training.pid in pids
                training.kill()
                os.waitid(os.P_PID, training.pid, os.WEXITED | os.WNOWAIT)
                return []

        assert Meter(Leaving()).sample(training.pid) is None


def test_the_limits_of_a_container_count(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = iter([cgroup.Cpu(cores=0.5, seconds=10), cgroup.Cpu(cores=0.5, seconds=1e9)])
    monkeypatch.setattr(cgroup, "memory", lambda: cgroup.Memory(limit=1000, used=10))
    monkeypatch.setattr(cgroup, "cpu", lambda: next(limits))
    meter = Meter(NoGpus())
    meter.sample(os.getpid())
    sample = meter.sample(os.getpid())
    assert sample is not None
    assert (sample.worker_memory_bytes, sample.worker_memory_limit_bytes) == (10, 1000)
    assert sample.worker_cpu_percent == 100
    assert sample.host_memory_total_bytes > 1000, "the machine's beside them"


def test_workers_side_by_side_share_the_gpus_without_overlap() -> None:
    shares = [find_gpus(GpuShare(part=part, of=2), FakeNvml()).devices() for part in range(2)]
    assert [[device.uuid for device in share] for share in shares] == [["GPU-0"], ["GPU-1"]]
