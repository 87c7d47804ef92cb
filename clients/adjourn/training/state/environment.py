"""What the bits of a training depend on beside its state: set up, recorded, compared.

PyTorch promises equal results for equal software on equal devices only
(https://pytorch.org/docs/stable/notes/randomness.html); sums on a CPU differ even between one thread and two.
"""

import functools
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch


def prepare(device_uuids: Sequence[str], threads: int) -> torch.device:
    """Makes torch compute the same each time, on these GPUs or else the CPU; returns the device to use.

    `threads` for one operation; 0: as many as torch thinks fit.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(device_uuids)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS may choose among workspaces
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if threads > 0:
        torch.set_num_threads(threads)
    return torch.device("cuda", 0) if device_uuids else torch.device("cpu")


def fingerprint(device: torch.device) -> dict[str, str]:
    """Returns what must be equal for two runs to come to the same bits."""
    found = {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "hash_seed": os.environ.get("PYTHONHASHSEED", "random"),  # the order of sets of strings
        "numpy": np.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "device": device.type,
    }
    if device.type == "cuda":
        found["gpus"] = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Returns (there, here) of everything that is not equal."""
    return {
        name: (there.get(name, "unknown"), here.get(name, "unknown"))
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    }


@functools.cache
def cpu_model() -> str:
    """Returns the processor's model: math libraries choose their kernels by it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"
