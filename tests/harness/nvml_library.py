"""A shared library that stands in for libnvidia-ml.so.1, so that the real pynvml runs without a GPU."""

import ctypes
import mmap
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import pynvml

SOURCE: Final = Path(__file__).with_name("nvml.c")
SONAME: Final = "libnvidia-ml.so.1"


class Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class Gpu(ctypes.Structure):
    _fields_ = (
        ("lost", ctypes.c_int),
        ("mig", ctypes.c_int),
        ("total", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
        ("busy", ctypes.c_uint),
        ("celsius", ctypes.c_uint),
        ("milliwatts", ctypes.c_uint),
        ("process_count", ctypes.c_uint),
        ("processes", Process * 8),
    )

    def run(self, used: Mapping[int, int]) -> None:
        """Has these processes on the GPU: bytes by pid."""
        self.process_count = len(used)
        for place, (pid, size) in enumerate(used.items()):
            self.processes[place] = Process(pid=pid, used=size)


class Table(ctypes.Structure):
    _fields_ = (("has_driver", ctypes.c_int), ("count", ctypes.c_uint), ("gpus", Gpu * 8))


class NvmlLibrary:
    """GPUs of a machine that has none: of this process once it is `loaded`, of others with `environment`."""

    def __init__(self, folder: Path) -> None:
        self._library, self._file = folder / SONAME, folder / "table"
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}", "-o", str(self._library), str(SOURCE)]
        subprocess.run(command, check=True, timeout=60)
        self._file.write_bytes(bytes(ctypes.sizeof(Table)))
        with self._file.open("r+b") as file:
            self._table = Table.from_buffer(mmap.mmap(file.fileno(), 0))

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which another process finds these GPUs."""
        return {"LD_LIBRARY_PATH": str(self._library.parent), "NVML_TABLE": str(self._file)}

    def loaded(self) -> Self:
        """Loads it into this process. Only one such library is: it stays."""
        # Whoever asks for the name of a library that is loaded gets that one.
        assert ctypes.CDLL(str(self._library)).use_table(str(self._file).encode()) == 0
        return self

    def has(self, count: int) -> Self:
        """Puts so many GPUs into the machine, with nothing on them; 0: it has no driver either."""
        pynvml.nvmlLib = None  # another was found before, or none
        self._table.has_driver, self._table.count = bool(count), count
        for index in range(8):
            self._table.gpus[index] = Gpu(total=80 << 30, used=1 << 20, celsius=40, milliwatts=70_500)
        return self

    def __getitem__(self, index: int) -> Gpu:
        found: Gpu = self._table.gpus[index]
        return found
