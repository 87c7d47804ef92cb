"""The state in a snapshot as plain PyTorch code knows it: `state_dict`s, of tensors and Python's own values.

What Adjourn saves beside a module's or an optimizer's `state_dict` (frozen parameters, gradients, attributes), and what
decides how a training goes on beside the tracked objects (random generators, place in the data), is under EXTRA.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from adjourn.training.snapshot.reader import SnapshotReader
from adjourn.v1.checkpoint_pb2 import Checkpoint

EXTRA: Final = "adjourn.checkpoint"
"""Key of what is no state_dict. No tracked object has that name: it is no identifier."""
MODULE: Final = frozenset(
    ("state_dict", "buffers", "empty_buffers", "frozen", "evaluating", "structure", "attributes", "generators")
)
OPTIMIZER: Final = frozenset(("kind", "state_dict", "groups"))
"""What is saved of a module and of an optimizer, by `adjourn.training.state`, beside gradients."""


def read(directory: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the state of each tracked object by its name, and the rest under EXTRA; raises SnapshotUnreadable."""
    reader = SnapshotReader(directory, torch.device("cpu"))
    found: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    for name in reader.components:
        value = plain(reader.value(name))
        if not name.isidentifier() or name in ("data", "numerics"):
            beside[name] = value
        elif isinstance(value, dict) and value.keys() - {"gradients"} in (MODULE, OPTIMIZER):
            found[name] = value.pop("state_dict")
            beside[name] = value
        else:
            found[name] = value
    found[EXTRA] = {
        "job": checkpoint.name.partition("/checkpoints/")[0],
        "checkpoint": checkpoint.name,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "metrics": dict(checkpoint.metrics),
        "state_digest": checkpoint.state_digest,
        "component_digests": dict(checkpoint.component_digests),
        "environment": dict(checkpoint.environment),
        "beside": beside,
    }
    return found


def plain(value: Any) -> Any:
    """Returns a value in types that `torch.load` takes without being told of more; shared tensors stay shared."""
    match value:
        case OrderedDict():
            ordered: OrderedDict[Any, Any] = OrderedDict((key, plain(item)) for key, item in value.items())
            if metadata := getattr(value, "_metadata", None):  # versions of modules, which load_state_dict looks at
                vars(ordered)["_metadata"] = metadata
            return ordered
        case Mapping():
            return {key: plain(item) for key, item in value.items()}
        case torch.Size():
            return value
        case tuple():
            return tuple(plain(item) for item in value)
        case list() | deque():
            return [plain(item) for item in value]
    return plain_leaf(value)


def plain_leaf(value: Any) -> Any:
    match value:
        case frozenset():
            return set(value)
        case np.ndarray():
            return torch.from_numpy(np.ascontiguousarray(value).copy())
        case np.generic():
            return value.item()
        case bytearray():
            return bytes(value)
    return value
