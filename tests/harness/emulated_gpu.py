"""Stands in for CUDA: tensors that it is told of count as those of a GPU, and what is asked of it is done late."""

import torch


class EmulatedGpus:
    """Copies into pinned memory only when it is waited for, and notes the order of all calls."""

    def __init__(self, *, refusal: str | None = None) -> None:
        self.refusal = refusal
        """Why no memory can be pinned."""
        self.calls: list[str] = []
        self.pinned: dict[int, int] = {}
        """Sizes by address."""
        self.late: list[tuple[torch.Tensor, torch.Tensor]] = []
        """What a kernel that runs will write: tensor, value."""
        self._tensors: dict[int, torch.Tensor] = {}
        self._begun: list[tuple[torch.Tensor, torch.Tensor]] = []

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Lets a tensor count as one of a GPU."""
        self._tensors[tensor.data_ptr()] = tensor
        return tensor

    def has(self, tensor: torch.Tensor) -> bool:
        return tensor.data_ptr() in self._tensors

    def register(self, memory: torch.Tensor) -> str | None:
        self.calls.append("register")
        if self.refusal is None:
            assert memory.data_ptr() not in self.pinned
            self.pinned[memory.data_ptr()] = memory.nbytes
        return self.refusal

    def unregister(self, memory: torch.Tensor) -> None:
        assert not self._begun, "a GPU still copies"
        memory[-1].item()  # still mapped
        self.calls.append("unregister")
        assert self.pinned.pop(memory.data_ptr()) == memory.nbytes

    def settle(self, _: torch.device) -> None:
        self.calls.append("settle")
        for tensor, value in self.late:
            tensor.copy_(value)
        self.late.clear()

    def copy_aside(self, _: torch.device, targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        self.calls.append("copy")
        for target in targets:
            begin = target.data_ptr()
            assert any(there <= begin and begin + target.nbytes <= there + size for there, size in self.pinned.items())
        self._begun += zip(targets, sources, strict=True)

    def finish(self, _: torch.device) -> None:
        self.calls.append("finish")
        for target, source in self._begun:
            target.copy_(source)
        self._begun.clear()
