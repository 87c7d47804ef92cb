"""Tells data from other data of equal length, by a few of its samples."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from adjourn.training.state.fields import Fields
from adjourn.training.state.generators import derived_seed, seeded

PROBES = 8
"""Samples whose digests stand for a dataset."""
PROBE_BYTES = 1 << 20
"""Of a tensor, array or image, as many bytes count."""
PROBE_DEPTH = 6


class Probe(NamedTuple):
    digest: str
    changed: list[tuple[str, str]]
    """Which of the dataset's fields reading this sample changed: owner and attribute."""


class Probes(Dataset[Probe]):
    """Samples, each as a digest; random draws within them are always the same."""

    def __init__(self, dataset: Dataset[Any], fields: Fields) -> None:
        self._dataset = dataset
        self._fields = fields

    def __getitem__(self, index: int) -> Probe:
        before = self._fields.values()
        digest = self._digest(index)
        return Probe(digest, self._fields.changed(before))

    def _digest(self, index: int) -> str:
        with seeded(derived_seed("probe", index)):
            try:
                sample = self._dataset[index]
            except Exception as error:  # noqa: BLE001  (training may never ask for it; if it does, it will say so)
                return f"raises {type(error).__qualname__}"
        return digest_of(sample)


def digest_of(sample: Any) -> str:
    """Returns what tells a sample, or a batch, from another."""
    hasher = hashlib.blake2b(digest_size=16)
    for piece in pieces(sample, PROBE_DEPTH):
        hasher.update(piece)
    return hasher.hexdigest()


def pieces(sample: Any, depth: int) -> Iterator[bytes]:
    """Returns bytes that are equal for equal samples; of an object that is not known, only its type."""
    yield type(sample).__qualname__.encode()
    if isinstance(sample, torch.Tensor) and sample.layout is torch.strided and not sample.is_meta:
        yield f"{sample.dtype}{tuple(sample.shape)}".encode()
        flat = sample.detach().resolve_conj().resolve_neg().reshape(-1)[: PROBE_BYTES // sample.element_size()]
        yield flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    elif isinstance(sample, bool | int | float | complex | str | None):
        yield repr(sample).encode()
    elif isinstance(sample, bytes | bytearray):
        yield bytes(sample[:PROBE_BYTES])
    elif callable(raw := getattr(sample, "tobytes", None)):  # an array, an image
        yield repr(getattr(sample, "shape", getattr(sample, "size", ""))).encode()
        yield raw()[:PROBE_BYTES]
    elif depth and isinstance(sample, Mapping):
        for key, value in sample.items():
            yield from pieces(key, depth - 1)
            yield from pieces(value, depth - 1)
    elif depth and isinstance(sample, list | tuple):
        for value in sample:
            yield from pieces(value, depth - 1)
    elif depth and hasattr(sample, "__dict__"):
        yield from pieces(vars(sample), depth - 1)
