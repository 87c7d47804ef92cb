"""PURE. What the bits of a training depend on beside its state: which differences matter, and which worker has none.

An environment maps names to values, as `adjourn.training.state.environment` finds them. The CPU's model decides the
bits of what is computed on a CPU. For a job on GPUs it does not count, although its samples are prepared on a CPU: a
transform whose bits depend on the CPU's model can then differ.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from adjourn.v1.worker_pb2 import Worker

CPU_ONLY: Final = frozenset({"cpu", "cpu_capability", "cpu_variables"})
"""Count where the device is a CPU."""
GPU_ONLY: Final = frozenset({"gpus", "compute_capability", "cuda", "cudnn", "driver", "gpu_variables"})
"""Count where the device is not a CPU."""
LIBRARY: Final = "library."
"""Prefix of a library's version. It counts if the training had imported the library."""
PACKAGES: Final = "packages"
"""What meets the job's requirements, by name and version. It counts if the training had any."""
OF_THE_PROCESS: Final = frozenset({"device", "threads", "compute_capability", "cudnn", PACKAGES})
"""Known to a training process only. The GPU's model implies its compute capability, torch's version its cuDNN."""
CPU: Final = "cpu"
CPU_VARIABLES: Final = ("OMP_", "KMP_", "GOMP_", "MKL_", "DNNL_", "ONEDNN_", "OPENBLAS_")
"""Prefixes of the variables that math libraries read on a CPU, when they are loaded."""


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Returns (there, here) of everything that counts and is not equal, by name.

    `there` is the environment of a checkpoint; its `device` decides what counts.
    """
    return {
        name: (there.get(name, "unknown"), here.get(name, "unknown"))
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name) and counts(name, there)
    }


def fits(environment: Mapping[str, str], worker: Worker, gpu_count: int) -> list[str]:
    """Returns what keeps a checkpoint of that environment from going on at a worker; empty: nothing does.

    `gpus` is among the names if fewer than `gpu_count` of the worker's GPUs are of the checkpoint's model. What only
    the checkpoint knows counts as different, what only the worker knows does not. What meets the job's own requirements
    is not looked at: a worker may install it.
    """
    own = {f"{LIBRARY}{name}" for name in unlisted(environment.get(PACKAGES, ""))}
    known = {name for name in environment.keys() - own if name not in OF_THE_PROCESS and name != "gpus"}
    different = [
        name for name in known if counts(name, environment) and worker.environment.get(name) != environment[name]
    ]
    if gpu_count and not has_gpus(environment, worker, gpu_count):
        different.append("gpus")
    return sorted(different)


def gpu_models(environment: Mapping[str, str]) -> list[str]:
    """Returns the models of the GPUs that a checkpoint was made with, in their order; empty: none, or unknown."""
    return [model for model in environment.get("gpus", "").split(", ") if model]


def has_gpus(environment: Mapping[str, str], worker: Worker, gpu_count: int) -> bool:
    models = gpu_models(environment)
    wanted = Counter(models[:1] * gpu_count if len(set(models)) == 1 else models)
    return wanted <= Counter(device.model for device in worker.devices if not device.quarantined)


def counts(name: str, there: Mapping[str, str]) -> bool:
    """Tells whether a difference in `name` can change the bits of a training whose environment is `there`."""
    if name == PACKAGES or name.startswith(LIBRARY):
        return name in there
    if name in CPU_ONLY:
        return there.get("device", CPU) == CPU
    return name not in GPU_ONLY or there.get("device", CPU) != CPU or name in there


def listed(versions: Mapping[str, str]) -> str:
    """Returns versions by name as a text, `a==1, b==2`: the value of PACKAGES."""
    return ", ".join(f"{name}=={version}" for name, version in sorted(versions.items()))


def unlisted(text: str) -> dict[str, str]:
    """Returns what `listed` was given."""
    pairs = (part.partition("==") for part in text.split(", ") if part)
    return {name: version for name, _, version in pairs}
