"""What a worker has and uses: GPUs through NVML, CPU and memory through the kernel.

A figure that cannot be had stays unset, never 0. All but `devices` may block for some milliseconds.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import psutil
import pynvml
import structlog

from adjourn.v1.usage_pb2 import GpuSample, ResourceSample
from adjourn.v1.worker_pb2 import Device
from adjourn_worker.host import cgroup
from adjourn_worker.settings import GpuShare

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger()


RELEASE_SLACK_BYTES: Final = 128 << 20
"""How much more than before may be in use on a GPU that counts as released."""


class Gpus(Protocol):
    """The GPUs of this machine."""

    def devices(self) -> list[Device]:
        """Returns the GPUs as last found, without asking the driver."""

    def refresh(self) -> None:
        """Finds out which GPUs can be offered."""

    def quarantine(self, levels: Mapping[str, int]) -> None:
        """Offers GPUs to nobody until no more than these bytes, by UUID, are in use on them.

        An agent that starts knows nothing of it: it offers every GPU that answers.
        """

    def environment(self) -> dict[str, str]:
        """Returns what of the bits of a training depends on the driver, as `Worker.environment`."""

    def sample(self, uuids: Collection[str], pids: Collection[int]) -> list[GpuSample]:
        """Returns the figures of some GPUs, by index; `pids` are the job's processes."""


class NoGpus:
    """A machine without GPUs."""

    def devices(self) -> list[Device]:
        return []

    def refresh(self) -> None:
        pass

    def quarantine(self, levels: Mapping[str, int]) -> None:
        pass

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
        self._levels: dict[str, int] = {}
        """Bytes that may be in use on a quarantined GPU that is to be offered again."""
        self._silent: set[str] = set()
        """GPUs that did not answer when they were asked last."""
        for index in filter(share.has, range(nvml.nvmlDeviceGetCount())):
            try:
                self._find(index)
            except nvml.NVMLError as error:  # it is lost; the others are not
                log.warning("gpu_not_usable", index=index, why=str(error))

    def _find(self, index: int) -> None:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = str(nvml.nvmlDeviceGetUUID(handle))
        self._devices[uuid] = Device(
            uuid=uuid,
            index=index,
            model=str(nvml.nvmlDeviceGetName(handle)),
            memory_bytes=nvml.nvmlDeviceGetMemoryInfo(handle).total,
        )
        self._handles[uuid] = handle

    def devices(self) -> list[Device]:
        found = [Device.FromString(device.SerializeToString()) for device in self._devices.values()]
        for device in found:
            device.quarantined = self._is_quarantined(device.uuid)
        return found

    def _is_quarantined(self, uuid: str) -> bool:
        return uuid in self._silent or uuid in self._levels

    def refresh(self) -> None:
        """Quarantines GPUs that do not answer; offers those again that answer and whose memory is free."""
        for uuid, device in self._devices.items():
            before, level = self._is_quarantined(uuid), self._levels.get(uuid)
            memory = self._answer(self._nvml.nvmlDeviceGetMemoryInfo, self._handles[uuid])
            if memory is None:
                self._silent.add(uuid)
            else:
                self._silent.discard(uuid)
                if level is not None and memory.used <= level:  # not one that was set since it was asked
                    self._levels.pop(uuid, None)
            if (quarantined := self._is_quarantined(uuid)) != before:
                log.warning("gpu_quarantined" if quarantined else "gpu_offered_again", uuid=uuid, index=device.index)

    def quarantine(self, levels: Mapping[str, int]) -> None:
        for uuid in levels.keys() & self._devices.keys():
            self._levels[uuid] = levels[uuid]
            log.warning("gpu_quarantined", uuid=uuid, why="the memory of its last job was not released")

    def environment(self) -> dict[str, str]:
        driver = self._answer(self._nvml.nvmlSystemGetDriverVersion)
        return {} if driver is None else {"driver": str(driver)}

    def sample(self, uuids: Collection[str], pids: Collection[int]) -> list[GpuSample]:
        return [self._sample(device, pids) for uuid, device in self._devices.items() if uuid in uuids]

    def _sample(self, device: Device, pids: Collection[int]) -> GpuSample:
        nvml, handle = self._nvml, self._handles[device.uuid]
        sample = GpuSample(uuid=device.uuid, index=device.index)
        if rates := self._answer(nvml.nvmlDeviceGetUtilizationRates, handle):
            sample.utilization_percent = rates.gpu
        if memory := self._answer(nvml.nvmlDeviceGetMemoryInfo, handle):
            sample.memory_used_bytes, sample.memory_total_bytes = memory.used, memory.total
        temperature = self._answer(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        if temperature is not None:
            sample.temperature_celsius = temperature
        milliwatts = self._answer(nvml.nvmlDeviceGetPowerUsage, handle)
        if milliwatts is not None:
            sample.power_watts = milliwatts / 1000
        job = self._job_memory(handle, pids)
        if job is not None:
            sample.job_memory_bytes = job
        return sample

    def _job_memory(self, handle: Any, pids: Collection[int]) -> int | None:
        """Returns None if processes are listed and none is the job's: in a container they have other numbers there."""
        listed = self._answer(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        if listed is None:
            return None
        used: list[int | None] = [process.usedGpuMemory for process in listed if process.pid in pids]
        known = [size for size in used if size is not None]
        return None if (listed and not used) or len(known) < len(used) else sum(known)

    def _answer(self, ask: Callable[..., T], *arguments: object) -> T | None:
        try:
            return ask(*arguments)
        except self._nvml.NVMLError:  # not supported (MIG), or the GPU is lost
            return None


def unreleased(before: Collection[GpuSample], now: Collection[GpuSample]) -> dict[str, int]:
    """Returns the GPUs that are not known to be free, and how many bytes may be in use on them at most, by UUID.

    A GPU that has told its memory before and does not now is not known to be free. One that had not told it either
    (MIG, or NVML failed) counts as released: there is nothing to compare with.
    """
    used = {sample.uuid: sample.memory_used_bytes for sample in now if sample.HasField("memory_used_bytes")}
    levels = {
        sample.uuid: sample.memory_used_bytes + RELEASE_SLACK_BYTES
        for sample in before
        if sample.HasField("memory_used_bytes")
    }
    return {uuid: level for uuid, level in levels.items() if uuid not in used or used[uuid] > level}


def memory_in_use(samples: Collection[GpuSample]) -> int | None:
    """Returns the bytes in use on some GPUs together; None: that is not known of all."""
    if not samples or not all(sample.HasField("memory_used_bytes") for sample in samples):
        return None
    return sum(sample.memory_used_bytes for sample in samples)


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
    """Samples one job, its worker, and the machine; CPU figures begin with the second sample."""

    def __init__(self, gpus: Gpus) -> None:
        self._gpus = gpus
        self._job: tuple[float, Cpu] | None = None
        self._worker = Load()
        self._host = Load()

    def sample(self, pid: int, uuids: Sequence[str] = ()) -> ResourceSample | None:
        """Returns the figures of the process `pid` with all its descendants, and of the GPUs `uuids`.

        None if the process is gone or going: what it leaves behind is not what it used.
        """
        sample = ResourceSample()
        sample.time.GetCurrentTime()
        pids = self._sample_job(sample, pid)
        if pid not in pids:
            return None
        sample.gpus.extend(self._gpus.sample(uuids, pids))
        if not resident_bytes(pid):
            return None  # its GPUs may have been asked when it had left them
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
                    times, memory = member.cpu_times(), member.memory_info().rss
                    if not memory:  # it is ending: a zombie, or about to be one
                        continue
                    resident.append(memory)
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
        sample.host_memory_bytes, sample.host_memory_total_bytes = machine.total - machine.available, machine.total
        limit = cgroup.memory()
        if limit and limit.limit < machine.total:
            sample.worker_memory_bytes, sample.worker_memory_limit_bytes = limit.used, limit.limit
        else:
            sample.worker_memory_bytes = sample.host_memory_bytes
            sample.worker_memory_limit_bytes = sample.host_memory_total_bytes
        now, cores, quota = time.monotonic(), psutil.cpu_count() or 1, cgroup.cpu()
        host = self._host.percent(now, busy_seconds(), cores)
        worker = self._worker.percent(now, quota.seconds, quota.cores) if quota else host
        if host is not None:
            sample.host_cpu_percent = host
        if worker is not None:
            sample.worker_cpu_percent = worker


def resident_bytes(pid: int) -> int:
    """Returns the memory of a process; 0 if it is gone, or ending: a zombie, or about to be one."""
    try:
        memory: int = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0
    return memory


class Load:
    """CPU time, as a share of what there was since it was last looked at."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def percent(self, now: float, spent: float, cores: float) -> float | None:
        """Returns 100 for all `cores`; None at first. `now`, `spent`: seconds of the clock, and of CPU time so far."""
        last, self._last = self._last, (now, spent)
        if last is None or now <= last[0]:
            return None
        return 100 * min(1.0, max(0.0, (spent - last[1]) / (now - last[0]) / cores))


def busy_seconds() -> float:
    """Returns the CPU time that the machine has spent on anything."""
    times = psutil.cpu_times()
    idle: float = times.idle + getattr(times, "iowait", 0.0)
    guest: float = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user and nice already
    return float(sum(times)) - idle - guest
