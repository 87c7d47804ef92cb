"""NVML as tests have it, without a GPU."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class NvmlError(Exception):
    pass


class FakeNvml:
    """Two GPUs as NVML tells of them; what is in `broken` raises."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, *broken: str) -> None:
        self.broken = set(broken)
        self.used = [200, 201]
        self.processes = [SimpleNamespace(pid=7, usedGpuMemory=100), SimpleNamespace(pid=8, usedGpuMemory=30)]
        answers: dict[str, Callable[..., Any]] = {
            "Init": lambda: None,
            "SystemGetDriverVersion": lambda: "580.95.05",
            "DeviceGetCount": lambda: 2,
            "DeviceGetHandleByIndex": lambda index: index,
            "DeviceGetUUID": lambda handle: f"GPU-{handle}",
            "DeviceGetName": lambda _: "H200",
            "DeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=1000, used=self.used[handle]),
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
