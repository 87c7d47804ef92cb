"""What the bits of a training depend on beside its state: set up and recorded; `adjourn.environments` compares it.

PyTorch promises equal results for equal software on equal devices only
(https://pytorch.org/docs/stable/notes/randomness.html); sums on a CPU differ even between one thread and two.
"""

import functools
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np
import torch

from adjourn.environments import CPU_VARIABLES, LIBRARY, PACKAGES, listed
from adjourn.requirements import pins

GPU_VARIABLES: Final = ("CUBLAS_", "CUDNN_", "NCCL_", "NVIDIA_TF32_OVERRIDE")
"""Prefixes of the variables that math libraries read on a GPU."""
WORKSPACE: Final = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""Without it, cuBLAS may choose among workspaces."""
LIBRARIES: Final[Mapping[str, str]] = {
    **{name: name for name in ("accelerate", "albumentations", "datasets", "diffusers", "imgaug", "jax", "kornia")},
    **{name: name for name in ("librosa", "lightning", "numba", "pandas", "peft", "scipy", "timm", "tokenizers")},
    **{name: name for name in ("torchaudio", "torchmetrics", "torchvision", "transformers", "triton", "xformers")},
    "PIL": "pillow",
    "cv2": "opencv-python",
    "flash_attn": "flash-attn",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "torch_geometric": "torch-geometric",
}
"""Libraries that compute what a training sees, by the name they are imported by."""
NAMES: Final = {module: f"{LIBRARY}{distribution}" for module, distribution in LIBRARIES.items()}
"""Their names in the environment."""


own_packages: dict[str, str] = {}
"""What the environment of this process is beside that of the machine, since packages of its job come first."""


def note_packages(requirements: Sequence[str]) -> None:
    """Notes what meets a job's requirements, and which versions of libraries that has made of the worker's own."""
    software_environment()
    own_packages[PACKAGES] = listed(pins(requirements))
    for distribution in sorted(set(LIBRARIES.values())):
        if version := version_of(distribution):
            own_packages[f"{LIBRARY}{distribution}"] = version


def prepare(device_uuids: Sequence[str], threads: int) -> torch.device:
    """Makes torch compute the same each time, on these GPUs or else the CPU; returns the device to use.

    `threads` for one operation; 0: as many as torch thinks fit.
    """
    software_environment()  # remembered before user code can change the variables that libraries have read
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(device_uuids)
    for name, value in WORKSPACE.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    if threads > 0:
        torch.set_num_threads(threads)
    return torch.device("cuda", 0) if device_uuids else torch.device("cpu")


def software_environment() -> dict[str, str]:
    """Returns what the bits of any training on this machine depend on, as `Worker.environment`; starts no CUDA.

    Every library of `LIBRARIES` that is installed is in it. The variables are those of the first call.
    """
    return {**found_software(), **own_packages}


@functools.cache
def found_software() -> Mapping[str, str]:
    found = {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "hash_seed": os.environ.get("PYTHONHASHSEED", "random"),  # the order of sets of strings
        "numpy": np.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_variables": variables(os.environ, CPU_VARIABLES),
        "gpu_variables": variables({**WORKSPACE, **os.environ}, GPU_VARIABLES),
    }
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    if driver := driver_version():
        found["driver"] = driver
    for distribution in sorted(set(LIBRARIES.values())):
        if version := version_of(distribution):
            found[f"{LIBRARY}{distribution}"] = version
    return found


def fingerprint(device: torch.device, imported: Callable[[str], bool] = sys.modules.__contains__) -> dict[str, str]:
    """Returns what must be equal for two runs on `device` to come to the same bits.

    Of the libraries, those that `imported` holds for.
    """
    unused = {name for module, name in NAMES.items() if not imported(module)}
    unused -= {name for module, name in NAMES.items() if imported(module)}
    found = {name: value for name, value in software_environment().items() if name not in unused}
    found |= {"threads": str(torch.get_num_threads()), "device": device.type}
    if device.type == "cuda":
        gpus = range(torch.cuda.device_count())
        found["gpus"] = ", ".join(torch.cuda.get_device_name(index) for index in gpus)
        found["compute_capability"] = ", ".join(
            "{}.{}".format(*torch.cuda.get_device_capability(index)) for index in gpus
        )
        found["cudnn"] = str(torch.backends.cudnn.version())
    else:
        for name in ("cuda", "driver", "gpu_variables"):
            found.pop(name, None)
    return found


def variables(environment: Mapping[str, str], prefixes: tuple[str, ...]) -> str:
    """Returns the variables whose names begin with one of `prefixes`, as `A=1 B=2`, in the order of their names."""
    return " ".join(f"{name}={value}" for name, value in sorted(environment.items()) if name.startswith(prefixes))


def version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def driver_version(
    module: Path = Path("/sys/module/nvidia/version"), driver: Path = Path("/proc/driver/nvidia/version")
) -> str | None:
    """Returns the version of NVIDIA's kernel driver; None: there is none."""
    if module.exists():
        return module.read_text().strip()
    if driver.exists() and (found := re.search(r"Module.*?\s(\d+\.[\d.]+)\s", driver.read_text())):
        return found[1]
    return None


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
