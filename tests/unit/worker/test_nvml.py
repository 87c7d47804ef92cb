"""What is made of the answers of NVML, through the real pynvml."""

from collections.abc import Iterator

import pytest

from adjourn.v1.usage_pb2 import GpuSample
from adjourn_worker.host.gpus import Gpus, NoGpus, find_gpus, memory_in_use, unreleased
from adjourn_worker.settings import GpuShare
from tests.harness.nvml_library import NvmlLibrary

GIB = 1 << 30


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> NvmlLibrary:
    return NvmlLibrary(tmp_path_factory.mktemp("nvml")).loaded()


@pytest.fixture
def nvml(library: NvmlLibrary) -> Iterator[NvmlLibrary]:
    yield library.has(3)
    library.has(0)


def sampled(gpus: Gpus, *pids: int) -> list[GpuSample]:
    return gpus.sample([device.uuid for device in gpus.devices()], pids)


def test_without_a_driver_there_are_no_gpus(library: NvmlLibrary) -> None:
    library.has(0)
    assert isinstance(find_gpus(GpuShare()), NoGpus)


def test_several_gpus_are_told_apart(nvml: NvmlLibrary) -> None:
    for index in range(3):
        nvml[index].used, nvml[index].busy = (index + 1) * GIB, 30 * index
        nvml[index].run({100 + index: index * GIB, 7: GIB // 2})
    gpus = find_gpus(GpuShare())
    assert [(device.uuid, device.index, device.model, device.memory_bytes) for device in gpus.devices()] == [
        (f"GPU-{index}", index, "Stand-in", 80 * GIB) for index in range(3)
    ]
    assert gpus.environment() == {"driver": "580.95.05"}
    assert sampled(gpus, 7, 102) == [
        GpuSample(
            uuid=f"GPU-{index}",
            index=index,
            utilization_percent=30 * index,
            memory_used_bytes=(index + 1) * GIB,
            job_memory_bytes=GIB // 2 + (2 * GIB if index == 2 else 0),
            memory_total_bytes=80 * GIB,
            temperature_celsius=40,
            power_watts=70.5,
        )
        for index in range(3)
    ]


def test_under_mig_utilization_is_absent_and_not_0(nvml: NvmlLibrary) -> None:
    nvml[1].mig = 1
    samples = sampled(find_gpus(GpuShare()))
    assert [sample.HasField("utilization_percent") for sample in samples] == [True, False, True]
    assert all(sample.HasField("memory_used_bytes") for sample in samples)


def test_a_gpu_that_is_lost_in_mid_run_tells_nothing_and_is_offered_to_nobody(nvml: NvmlLibrary) -> None:
    gpus = find_gpus(GpuShare())
    before = sampled(gpus)
    nvml[2].lost = 1
    now = sampled(gpus)
    assert now[2] == GpuSample(uuid="GPU-2", index=2)
    assert now[:2] == before[:2]
    assert memory_in_use(now) is None
    assert unreleased(before, now).keys() == {"GPU-2"}
    gpus.refresh()
    assert [device.quarantined for device in gpus.devices()] == [False, False, True]


def test_a_gpu_that_was_lost_before_leaves_the_others(nvml: NvmlLibrary) -> None:
    nvml[0].lost = 1
    assert [device.uuid for device in find_gpus(GpuShare()).devices()] == ["GPU-1", "GPU-2"]


def test_memory_that_is_kept_after_the_exit_is_not_released(nvml: NvmlLibrary) -> None:
    gpus = find_gpus(GpuShare())
    before = sampled(gpus)
    nvml[0].used += 5 * GIB
    nvml[0].run({4711: 5 * GIB})
    during = sampled(gpus, 4711)
    assert during[0].job_memory_bytes == 5 * GIB
    nvml[0].run({})  # the process is gone, and its memory in use
    after = sampled(gpus)
    assert (after[0].HasField("job_memory_bytes"), after[0].job_memory_bytes) == (True, 0)
    assert unreleased(before, after).keys() == {"GPU-0"}
    nvml[0].used -= 5 * GIB
    assert unreleased(before, sampled(gpus)) == {}


def test_processes_whose_memory_the_driver_does_not_tell(nvml: NvmlLibrary) -> None:
    nvml[0].run({7: (1 << 64) - 1})
    assert not sampled(find_gpus(GpuShare()), 7)[0].HasField("job_memory_bytes")
