"""Memory that GPUs copy from and to by themselves: that of a mapped file, registered with CUDA while it is mapped.

From and to other memory, the driver copies through a buffer of its own, and whoever asks for it waits for each tensor.
"""

import weakref
from collections import defaultdict
from contextlib import suppress
from typing import Final, Protocol

import torch

from adjourn.training.events import log_line

PORTABLE: Final = 1
"""cudaHostRegisterPortable: for all GPUs, whichever is the current one of the thread that registers."""


class Gpus(Protocol):
    """The few calls of CUDA; tests have others, without a GPU."""

    def has(self, tensor: torch.Tensor) -> bool:
        """Tells whether a tensor lies on a GPU."""

    def register(self, memory: torch.Tensor) -> str | None:
        """Pins memory; returns why that cannot be done, in words."""

    def unregister(self, memory: torch.Tensor) -> None:
        """Lets go of pinned memory, once nothing is copied from or to it any more."""

    def settle(self, device: torch.device) -> None:
        """Returns once everything is done that was asked of a GPU before, on whatever stream."""

    def copy_aside(self, device: torch.device, targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        """Begins to copy tensors of a GPU into pinned memory, on a stream of its own."""

    def finish(self, device: torch.device) -> None:
        """Returns once all is copied that `copy_aside` began."""


class Cuda:
    """Calls CUDA through torch."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def has(self, tensor: torch.Tensor) -> bool:
        return tensor.is_cuda

    def register(self, memory: torch.Tensor) -> str | None:
        if not torch.cuda.is_available():  # a job on GPUs may train with something else than torch
            return "torch finds no GPU"
        runtime = torch.cuda.cudart()
        error = runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, PORTABLE)
        if int(error) == 0:
            return None
        with suppress(RuntimeError):
            # CUDA keeps the error for this thread, and the next kernel would be told of it: this one is.
            torch.ones(1, device="cuda")
        return str(runtime.cudaGetErrorString(error))

    def unregister(self, memory: torch.Tensor) -> None:
        with suppress(RuntimeError):  # of a GPU that has failed, user code hears
            for index in range(torch.cuda.device_count()):
                torch.cuda.synchronize(index)
            if int(torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())) != 0:
                torch.ones(1, device="cuda")  # as above

    def settle(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)

    def copy_aside(self, device: torch.device, targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        with torch.cuda.stream(self._streams[device]):
            torch._foreach_copy_(targets, sources, non_blocking=True)

    def finish(self, device: torch.device) -> None:
        self._streams[device].synchronize()


class Pinned:
    """A stretch of memory that is pinned, if CUDA lets it; lets go of it when it is itself let go."""

    _told: set[str] = set()  # noqa: RUF012  (of the process: each reason is told once)

    def __init__(self, gpus: Gpus) -> None:
        self._gpus = gpus
        self._place: tuple[int, int] | None = None
        self._release: weakref.finalize[..., Pinned] | None = None

    def __bool__(self) -> bool:
        return self._release is not None

    def hold(self, memory: torch.Tensor) -> None:
        """Pins this memory, and no other from now on; it stays mapped as long as it is pinned."""
        place = (memory.data_ptr(), memory.nbytes)
        if self._place == place:
            return
        self.release()
        self._place = place
        if (refusal := self._gpus.register(memory)) is None:
            self._release = weakref.finalize(self, self._gpus.unregister, memory)
            self._release.atexit = False  # the kernel does it
        elif refusal not in self._told:
            self._told.add(refusal)
            log_line(
                f"the memory of snapshots cannot be pinned ({refusal}): copies from and to GPUs take longer, and are as"
                " exact. A limit on locked memory (`ulimit -l`) may be why"
            )

    def release(self) -> None:
        """Lets go of the memory; call it before it is unmapped, or its file gets another length."""
        if self._release is not None:
            self._release()
        self._release, self._place = None, None


def copy(targets: list[torch.Tensor], sources: list[torch.Tensor], gpus: Gpus | None, *, pinned: bool) -> None:
    """Copies tensors of any device into mapped files; returns once all of it is there.

    All that was asked of the GPUs before is done first, on streams of user code too: the copy is of this moment. It is
    made on a stream of its own, so that what threads of user code ask for meanwhile does not hold it up. No `gpus`: all
    tensors are on the CPU.
    """
    there: defaultdict[torch.device, list[int]] = defaultdict(list)
    here = []
    for index, source in enumerate(sources if gpus else ()):
        if gpus and gpus.has(source):
            there[source.device].append(index)
        else:
            here.append(index)
    if not gpus or not there:
        if sources:
            torch._foreach_copy_(targets, sources)
        return
    for device in there:
        gpus.settle(device)
    try:
        for device, indices in there.items():
            of_gpu, from_gpu = [targets[index] for index in indices], [sources[index] for index in indices]
            if pinned:
                gpus.copy_aside(device, of_gpu, from_gpu)
            else:
                torch._foreach_copy_(of_gpu, from_gpu)
        if here:
            torch._foreach_copy_([targets[index] for index in here], [sources[index] for index in here])
    finally:
        for device in there if pinned else ():
            gpus.finish(device)
