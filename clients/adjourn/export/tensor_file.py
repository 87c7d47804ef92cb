"""A `.safetensors` file: tensors by flat names (`model.head.weight`), and nothing else.

The format (https://github.com/huggingface/safetensors) is a header in JSON and the bytes. A tensor that has several
names is written once; the metadata says `other name: name`, as `safetensors.torch.save_model` does.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from adjourn import snapshots
from adjourn.export.errors import ExportRefused
from adjourn.export.plain import EXTRA
from adjourn.training.state.codec import DTYPES


def write(state: Any, about: Mapping[str, Any], path: Path) -> int:
    """Writes the tensors of a state; returns how many values of other kinds were left out. Raises ExportRefused."""
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[tuple[Any, ...], str] = {}
    left_out = 0
    for name, value in flat(state):
        if not isinstance(value, torch.Tensor):
            left_out += 1
            continue
        if value.layout is not torch.strided or value.dtype not in DTYPES:
            what = value.dtype if value.layout is torch.strided else value.layout
            raise ExportRefused(f"{name} is {what}, which safetensors lacks; use --format torch")
        if name in tensors or name in aliases:
            raise ExportRefused(f"two tensors have the flat name {name}; use --format torch")
        same = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.is_conj(), value.is_neg())
        if value.numel() and same in names:
            aliases[name] = names[same]
            continue
        names[same] = name
        tensors[name] = value
    if not tensors:
        raise ExportRefused("there is no tensor in it; use --format torch")
    metadata = {**{f"{EXTRA}.{key}": str(value) for key, value in about.items()}, **aliases}
    head, entries = snapshots.layout(
        ((name, DTYPES[tensor.dtype], tensor.shape) for name, tensor in tensors.items()), metadata
    )
    with path.open("wb") as output:
        output.write(head)
        for name, tensor in tensors.items():
            output.seek(entries[name].begin)
            data = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
            output.write(data.numpy().data)
    return left_out


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each value below mappings and sequences, by the keys that lead to it."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        yield name, value
        return
    for key, item in items:
        yield from flat(item, f"{name}.{key}" if name else key)
