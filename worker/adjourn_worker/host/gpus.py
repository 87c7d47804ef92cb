"""What a worker has and uses: GPUs through NVML, CPU and memory through the kernel.

A figure that the machine does not tell stays unset, never 0. Everything here may block for some milliseconds.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import psutil
import pynvml
import structlog

from adjourn.v1.usage_pb2 import GpuSample, ResourceSample
from adjourn.v1.worker_pb2 import Device
from adjourn_worker.host import cgroup
from adjourn_worker.settings import GpuShare

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Gpus(Protocol):
    """The GPUs of this machine."""

    def inventory(self) -> list[Device]: ...

    def environment(self) -> dict[str, str]:
        """Returns what of the bits of a training depends on the driver, as `Worker.environment`."""

    def sample(self, uuids: Collection[str], pids: Collection[int]) -> list[GpuSample]:
        """Returns the figures of some GPUs, by index; `pids` are the job's processes."""


class NoGpus:
    """A machine without GPUs."""

    def inventory(self) -> list[Device]:
        return []

    def environment(self) -> dict[str, str]:
        return {}

    def sample(self, uuids: Collection[str], pids: Collection[int]) -> list[GpuSample]:
        return []


class NvidiaGpus:
    """GPUs that NVML knows; raises NVMLError if it cannot be used."""

    def __init__(self, share: GpuShare, nvml: Any) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._devices: dict[str, Device] = {}
        self._handles: dict[str, Any] = {}
        for index in filter(share.has, range(nvml.nvmlDeviceGetCount())):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = str(nvml.nvmlDeviceGetUUID(handle))
            self._handles[uuid] = handle
            self._devices[uuid] = Device(
                uuid=uuid,
                index=index,
                model=str(nvml.nvmlDeviceGetName(handle)),
                memory_bytes=nvml.nvmlDeviceGetMemoryInfo(handle).total,
            )

    def inventory(self) -> list[Device]:
        """Returns the GPUs found at the start; one that no longer answers is quarantined."""
        found = []
        for uuid, device in self._devices.items():
            copy = Device()
            copy.CopyFrom(device)
            copy.quarantined = self._told(self._nvml.nvmlDeviceGetMemoryInfo, self._handles[uuid]) is None
            found.append(copy)
        return found

    def environment(self) -> dict[str, str]:
        driver = self._told(self._nvml.nvmlSystemGetDriverVersion)
        return {} if driver is None else {"driver": str(driver)}

    def sample(self, uuids: Collection[str], pids: Collection[int]) -> list[GpuSample]:
        return [self._sample(device, pids) for uuid, device in self._devices.items() if uuid in uuids]

    def _sample(self, device: Device, pids: Collection[int]) -> GpuSample:
        nvml, handle = self._nvml, self._handles[device.uuid]
        sample = GpuSample(uuid=device.uuid, index=device.index)
        if rates := self._told(nvml.nvmlDeviceGetUtilizationRates, handle):
            sample.utilization_percent = rates.gpu
        if memory := self._told(nvml.nvmlDeviceGetMemoryInfo, handle):
            sample.memory_used_bytes, sample.memory_total_bytes = memory.used, memory.total
        temperature = self._told(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        if temperature is not None:
            sample.temperature_celsius = temperature
        milliwatts = self._told(nvml.nvmlDeviceGetPowerUsage, handle)
        if milliwatts is not None:
            sample.power_watts = milliwatts / 1000
        job = self._job_memory(handle, pids)
        if job is not None:
            sample.job_memory_bytes = job
        return sample

    def _job_memory(self, handle: Any, pids: Collection[int]) -> int | None:
        """Returns None if processes are listed and none is the job's: in a container they have other numbers there."""
        listed = self._told(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        if listed is None:
            return None
        used: list[int | None] = [process.usedGpuMemory for process in listed if process.pid in pids]
        known = [size for size in used if size is not None]
        return None if (listed and not used) or len(known) < len(used) else sum(known)

    def _told(self, ask: Callable[..., T], *arguments: object) -> T | None:
        try:
            return ask(*arguments)
        except self._nvml.NVMLError:  # not supported (MIG), or the GPU is lost
            return None


def find_gpus(share: GpuShare, nvml: Any = pynvml) -> Gpus:
    """Returns our share of the machine's GPUs; without a driver there are none, which is a valid answer."""
    try:
        return NvidiaGpus(share, nvml)
    except nvml.NVMLError as error:
        log.info("no_gpus", why=str(error))
        return NoGpus()


Cpu = Mapping[tuple[int, float], float]
"""CPU seconds of processes, by pid and start."""


class Meter:
    """Samples one job, or with no job the worker alone; CPU figures begin with the second sample."""

    def __init__(self, gpus: Gpus) -> None:
        self._gpus = gpus
        self._job: tuple[float, Cpu] | None = None
        self._worker: tuple[float, float] | None = None

    def sample(self, pid: int | None = None, uuids: Sequence[str] = ()) -> ResourceSample:
        """Returns the figures of the process `pid` with all its descendants, and of the GPUs `uuids`."""
        sample = ResourceSample()
        sample.time.GetCurrentTime()
        pids = self._sample_job(sample, pid) if pid is not None else []
        sample.gpus.extend(self._gpus.sample(uuids, pids))
        self._sample_worker(sample)
        return sample

    def _sample_job(self, sample: ResourceSample, pid: int) -> list[int]:
        now, cpu, resident = time.monotonic(), {}, []
        try:
            leader = psutil.Process(pid)
            family = [leader, *leader.children(recursive=True)]
        except psutil.Error:
            return []
        for member in family:
            try:
                with member.oneshot():
                    times = member.cpu_times()
                    resident.append(member.memory_info().rss)
                    cpu[member.pid, member.create_time()] = times.user + times.system
            except psutil.Error:  # it has just ended
                continue
        if not cpu:
            return []
        sample.memory_bytes = sum(resident)
        if self._job and now > self._job[0] and not cpu.keys().isdisjoint(self._job[1]):
            spent = sum(seconds - self._job[1].get(key, 0.0) for key, seconds in cpu.items())
            sample.cpu_percent = 100 * spent / (now - self._job[0])
        self._job = now, cpu
        return [number for number, _ in cpu]

    def _sample_worker(self, sample: ResourceSample) -> None:
        machine = psutil.virtual_memory()
        limit = cgroup.memory()
        if limit and limit.limit < machine.total:
            sample.worker_memory_bytes, sample.worker_memory_limit_bytes = limit.used, limit.limit
        else:
            sample.worker_memory_bytes = machine.total - machine.available
            sample.worker_memory_limit_bytes = machine.total
        quota = cgroup.cpu()
        cores = quota.cores if quota else psutil.cpu_count() or 1
        now, spent = time.monotonic(), quota.seconds if quota else busy_seconds()
        if self._worker and now > self._worker[0]:
            share = (spent - self._worker[1]) / (now - self._worker[0]) / cores
            sample.worker_cpu_percent = 100 * min(1.0, max(0.0, share))
        self._worker = now, spent


def busy_seconds() -> float:
    """Returns the CPU time that the machine has spent on anything."""
    times = psutil.cpu_times()
    idle: float = times.idle + getattr(times, "iowait", 0.0)
    guest: float = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user and nice already
    return float(sum(times)) - idle - guest
