"""Switches that change how torch computes: recorded as state, since user code may turn them while it trains.

Operations that have no deterministic implementation only warn, so that most trainings run: their warnings are heard.

Only a switch that differs is set: since torch 2.9 the old and the new names of TF32 switches must not be mixed.
"""

import functools
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

NUMERICS: Final = "numerics"
"""Name of the component."""

ATTRIBUTES: Final = (
    *("backends.cudnn.enabled", "backends.cudnn.benchmark", "backends.cudnn.deterministic"),
    *("backends.cudnn.benchmark_limit", "backends.mkldnn.enabled", "utils.deterministic.fill_uninitialized_memory"),
    *("backends.fp32_precision", "backends.cuda.matmul.fp32_precision"),
    *("backends.cudnn.fp32_precision", "backends.cudnn.conv.fp32_precision", "backends.cudnn.rnn.fp32_precision"),
    *("backends.mkldnn.fp32_precision", "backends.mkldnn.matmul.fp32_precision"),
    *("backends.mkldnn.conv.fp32_precision", "backends.mkldnn.rnn.fp32_precision"),
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
)
"""Switches that are attributes below `torch`."""
READERS: Final = {name: operator.attrgetter(name) for name in ATTRIBUTES}

FUNCTIONS: Final[Mapping[str, tuple[Callable[[], Any], Callable[[Any], object]]]] = {
    "default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "deterministic_algorithms": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "grad_enabled": (torch.is_grad_enabled, torch.set_grad_enabled),
    "flash_sdp": (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    "mem_efficient_sdp": (
        torch.backends.cuda.mem_efficient_sdp_enabled,
        torch.backends.cuda.enable_mem_efficient_sdp,
    ),
    "math_sdp": (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    "cudnn_sdp": (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    **{
        f"autocast_dtype.{device}": (
            functools.partial(torch.get_autocast_dtype, device),
            functools.partial(torch.set_autocast_dtype, device),
        )
        for device in ("cpu", "cuda")
    },
}
"""Switches that are functions: how to read one, how to set it."""


def numerics() -> dict[str, Any]:
    """Returns how every switch that this torch has is set."""
    found = {name: read() for name, (read, _) in FUNCTIONS.items()}
    for name, read_attribute in READERS.items():
        try:
            found[name] = read_attribute(torch)
        except (AttributeError, RuntimeError):  # it is of another version, or of another device
            continue
    return found


def restore_numerics(state: Mapping[str, Any]) -> None:
    """Sets the switches as in a state of `numerics`."""
    here = numerics()
    for name, value in state.items():
        if name not in here or here[name] == value:
            continue
        if name in FUNCTIONS:
            FUNCTIONS[name][1](value)
        else:
            place, _, switch = name.rpartition(".")
            setattr(operator.attrgetter(place)(torch), switch, value)


def compiled() -> list[str]:
    """Returns, in a sentence, that torch.compile has made code in this process; nothing if it has not."""
    from torch._dynamo.utils import counters  # there is no public way to ask

    if not counters["stats"]["unique_graphs"]:
        return []
    return ["torch.compile was used: a resumed run compiles anew, and may come to kernels that give other bits"]


class NondeterminismFilter:
    """A filter of Python's warnings that lets all of them pass, and remembers what torch says of nondeterminism.

    Warnings that a filter in front of it ignores are not heard.
    """

    SAYS: Final = re.compile(r"deterministic (implementation|algorithm|behavior)", re.IGNORECASE)
    OPERATION: Final = re.compile(r"^(\S+) does not have a deterministic implementation")

    def __init__(self) -> None:
        self._heard: dict[str, None] = {}

    def install(self) -> None:
        """Puts the filter in front of the others, that of this process's earlier trainings excepted."""
        entry = ("default", self, Warning, None, 0)
        warnings.filters.insert(0, entry)  # type: ignore[attr-defined]
        warnings._filters_mutated()  # type: ignore[attr-defined]  # noqa: SLF001  (what filterwarnings() does)

    def match(self, text: str) -> None:
        """Looks at a warning; is asked by the machinery of warnings, and never takes one."""
        if self.SAYS.search(text):
            operation = self.OPERATION.search(text)
            self._heard[operation[1] if operation else text.partition(". ")[0].partition("\n")[0]] = None

    def heard(self) -> list[str]:
        """Returns the operations that may come to other bits each time, in the order in which they were heard of."""
        return list(self._heard)
