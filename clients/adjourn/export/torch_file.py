"""A file of `torch.save`, which `torch.load(path, weights_only=True)` takes: it runs no code.

The one module that writes pickles. Nothing of Adjourn reads them, except for the check that others can.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from adjourn.export.errors import ExportRefused


def write(state: Any, path: Path) -> None:
    """Raises ExportRefused for a state that could not be loaded without running code."""
    torch.save(state, path)
    try:
        torch.load(path, weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError) as error:
        raise ExportRefused(f"torch.load would not take it with weights_only=True: {error}") from error
